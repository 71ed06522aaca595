"""One trunk for two tasks, with running statistics that they share or that each has for itself.

    python examples/multi_task.py

Two pairs of Dense 128 - batch norm - ReLU, then one head for each task: which digit it is; and whether
it is odd, on inverted images of a quarter of the contrast. The scale and bias of a layer serve both.

    shared    each task's minibatch is normalized by itself, and both update one `batch_stats`
    per task  the same training, for running averages have no part in it, and a `batch_stats` each
    joint     both minibatches go through the trunk as one, and there is one `batch_stats`

In pure functions these are one or two pytrees handed to the same trunk. Prints the test accuracy of
each task after the last epoch, and draws it.
"""

from shared import flags

parser = flags.parser("One network for two tasks, with running statistics shared or apart.", seeds=5)
if __name__ == "__main__":
    parser.parse_args()  # before the imports that take seconds, so that --help does not

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from tqdm import tqdm

from models import mlp
from shared import data, pictures, report, side_by_side

HIDDEN = 128
TASKS = {"digit": 10, "odd or even, inverted": 2}
WAYS = ("shared", "per task", "joint")


def init(key: jax.Array, inputs: int, way: str) -> tuple[Any, Any]:
    """Parameters of trunk and heads, and the statistics of the trunk, once or once for each task."""
    key, *head_keys = jax.random.split(key, 1 + len(TASKS))
    heads = [
        mlp.init(k, (HIDDEN, classes))[0] for k, classes in zip(head_keys, TASKS.values(), strict=True)
    ]
    layers, batch_stats = mlp.init(key, (inputs, HIDDEN, HIDDEN, 1))
    copies = len(TASKS) if way == "per task" else 1
    return {"trunk": layers[:-1], "heads": heads}, [batch_stats] * copies


def apply(
    params: Any, batch_stats: Sequence[Any], images: Sequence[jax.Array], way: str, *, train: bool
) -> tuple[list[jax.Array], list[Any]]:
    """Each task's logits, and the running statistics after both."""
    trunk = functools.partial(mlp.apply, params["trunk"], train=train, momentum=0.9)
    batch_stats = list(batch_stats)
    if way == "joint":
        x, batch_stats[0] = trunk(batch_stats[0], jnp.concatenate(images))
        features = jnp.split(x, len(images))
    else:
        features = []
        for task, x in enumerate(images):
            own = task if way == "per task" else 0
            x, batch_stats[own] = trunk(batch_stats[own], x)
            features.append(x)
    pairs = zip(params["heads"], features, strict=True)
    return [mlp.apply(head, [], jax.nn.relu(x))[0] for head, x in pairs], batch_stats


def tasks(images: Any, labels: Any) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """Images and labels of each task."""
    return (images, (1 - images) / 4), (labels, labels % 2)


def loss(params: Any, batch_stats: Any, minibatch: Any, *, way: str) -> tuple[jax.Array, Any]:
    """The sum of the tasks' cross entropies, and the new statistics."""
    images, labels = tasks(*minibatch)
    logits, batch_stats = apply(params, batch_stats, images, way, train=True)
    losses = map(side_by_side.cross_entropy, logits, labels)
    return jnp.sum(jnp.stack(list(losses))), batch_stats


@functools.partial(jax.jit, static_argnames="way")
def evaluate(states: side_by_side.State, *, digits: data.Digits, way: str) -> jax.Array:
    """Test accuracy of each task for each seed, (seeds, tasks), with the running statistics."""
    images, labels = tasks(digits.test_images, digits.test_labels)

    def one(state):
        logits, _ = apply(state.params, state.batch_stats, images, way, train=False)
        return jnp.stack(list(map(side_by_side.accuracy, logits, labels)))

    return jax.vmap(one)(states)


def draw(results: Mapping[str, np.ndarray]) -> Figure:
    """A group of bars for each task: mean and deviation after the last epoch."""
    figure = Figure(figsize=(8, 4.4), dpi=110, layout="constrained")
    axes = figure.subplots()
    for index, (way, accuracies) in enumerate(results.items()):
        places, last = 0.25 * (index - 1) + np.arange(len(TASKS)), accuracies[-1]
        deviation = last.std(0, ddof=1) if len(last) > 1 else None
        bars = axes.bar(places, last.mean(0), 0.23, yerr=deviation, capsize=4, label=way)
        axes.bar_label(bars, [f"{mean:.1%}" for mean in last.mean(0)], padding=2)
    pictures.accuracy_axis(axes)
    axes.set_xticks(range(len(TASKS)), list(TASKS))
    axes.set(xlabel="task", ylim=(0, 1.1))
    figure.legend(title="running statistics", loc="outside lower center", ncols=3)
    return figure


def main(argv: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """Trains in each way; returns the test accuracies of each, (epochs + 1, seeds, tasks)."""
    args, digits = data.start(parser, argv)
    images, labels, *_ = map(jnp.asarray, digits)
    optimizer, seeds = optax.adam(args.learning_rate), flags.seeds(args)
    results = {}
    with tqdm(total=len(WAYS) * args.epochs, unit="epoch") as bar:
        for way in WAYS:
            bar.set_description(way)
            create = functools.partial(init, inputs=images[0].size, way=way)
            results[way] = side_by_side.train(
                functools.partial(loss, way=way),
                optimizer,
                side_by_side.create(create, optimizer, seeds),
                side_by_side.orders(len(images), args.batch_size, args.epochs, seeds),
                (images, labels),
                functools.partial(evaluate, digits=digits, way=way),
                bar,
            )
    rows = {way: [report.spread(a) for a in values[-1].T] for way, values in results.items()}
    print(report.table("running statistics", list(TASKS), rows))
    pictures.save(draw(results), args.out / "multi_task.png")
    return results


if __name__ == "__main__":
    main()
