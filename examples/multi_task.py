"""One trunk for two tasks, with running statistics that they share or that each has for itself.

    python examples/multi_task.py

Two pairs of Dense 128 - batch norm - ReLU, then one head for each task: which digit it is; and whether
it is odd, on inverted images of a quarter of the contrast. The scale and bias of a layer serve both.

    shared    each task's minibatch is normalized by itself, and both update one `batch_stats`
    per task  the same training, for running averages have no part in it, and a `batch_stats` each
    joint     both minibatches go through the trunk as one, and there is one `batch_stats`

In pure functions these are one or two pytrees handed to the same trunk. Prints the test accuracy of
each task, mean and standard deviation over the seeds after the last epoch, and draws it.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from tqdm import tqdm

import data
import functional_training as training
import jbn
import report
import trials

HIDDEN = 128
TASKS, CLASSES = ("digit", "odd or even, inverted"), (10, 2)
WAYS = ("shared", "per task", "joint")


def create_state(seed: Any, inputs: int, way: str) -> training.State:
    """The state before the first step, for images of `inputs` pixels."""
    first, second, *heads, key = jax.random.split(jax.random.key(seed), 5)
    norms, batch_stats = zip(*(jbn.init(HIDDEN) for _ in range(2)), strict=True)
    params = {
        "layers": (training.dense(first, inputs, HIDDEN), training.dense(second, HIDDEN, HIDDEN)),
        "norms": norms,
        "heads": [training.dense(*head) for head in zip(heads, [HIDDEN] * 2, CLASSES, strict=True)],
    }
    copies = len(TASKS) if way == "per task" else 1
    return training.create_state(params, [batch_stats] * copies, key)


def trunk(params: Any, batch_stats: Any, images: jax.Array, *, train: bool) -> tuple[jax.Array, Any]:
    """Images (N, H, W, 1) to features (N, 128) and the new running statistics."""
    x, updated = images.reshape(len(images), -1), []
    for layer, norm, stats in zip(params["layers"], params["norms"], batch_stats, strict=True):
        x = training.apply_dense(layer, x)
        x, stats = jbn.batch_norm(x, norm, stats, train=train, momentum=0.9)
        x = jax.nn.relu(x)
        updated.append(stats)
    return x, tuple(updated)


def features(
    params: Any, batch_stats: Sequence[Any], images: Sequence[jax.Array], way: str, *, train: bool
) -> tuple[Sequence[jax.Array], Sequence[Any]]:
    """Each task's features, and the running statistics after both."""
    if way == "joint":
        x, stats = trunk(params, batch_stats[0], jnp.concatenate(images), train=train)
        return jnp.split(x, len(images)), [stats]
    each, batch_stats = [], list(batch_stats)
    for task, x in enumerate(images):
        own = task if way == "per task" else 0
        x, batch_stats[own] = trunk(params, batch_stats[own], x, train=train)
        each.append(x)
    return each, batch_stats


def both_tasks(
    state: training.State, params: Any, minibatch: Any, way: str, *, train: bool
) -> tuple[jax.Array, jax.Array, Any]:
    """Loss and accuracy of each task, (2,) each, and the running statistics."""
    digits, labels = minibatch
    images, labels = (digits, (1 - digits) / 4), (labels, labels % 2)
    each, batch_stats = features(params, state.batch_stats, images, way, train=train)
    logits = map(training.apply_dense, params["heads"], each)
    losses, accuracies = zip(*map(training.loss_and_accuracy, logits, labels), strict=True)
    return jnp.stack(losses), jnp.stack(accuracies), batch_stats


def train_step(
    state: training.State, minibatch: Any, *, way: str, learning_rate: float
) -> training.State:
    """One step of Adam down the sum of the tasks' losses."""

    def loss(params):
        losses, _, batch_stats = both_tasks(state, params, minibatch, way, train=True)
        return jnp.sum(losses), batch_stats

    grads, batch_stats = jax.grad(loss, has_aux=True)(state.params)
    return training.adam_step(state, grads, batch_stats, learning_rate)


@functools.partial(jax.jit, static_argnames="way")
def evaluate(states: training.State, *, digits: data.Digits, way: str) -> jax.Array:
    """Test accuracy of each task for each seed, (seeds, 2), with the running statistics."""
    images = (digits.test_images, digits.test_labels)
    return jax.vmap(lambda s: both_tasks(s, s.params, images, way, train=False)[1])(states)


def draw(results: Mapping[str, np.ndarray]) -> Figure:
    """A group of bars for each task: mean and deviation after the last epoch."""
    figure = Figure(figsize=(8, 4.4), dpi=110, layout="constrained")
    axes = figure.subplots()
    for shift, (way, accuracies) in zip((-0.25, 0, 0.25), results.items(), strict=True):
        last = accuracies[-1]
        deviation = last.std(0, ddof=1) if len(last) > 1 else None
        bars = axes.bar(shift + np.arange(2), last.mean(0), 0.23, yerr=deviation, capsize=4, label=way)
        axes.bar_label(bars, [f"{mean:.1%}" for mean in last.mean(0)], padding=2)
    axes.set_xticks(range(2), TASKS)
    axes.set(xlabel="task", ylabel="test accuracy, mean and deviation", ylim=(0, 1.1))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(alpha=0.3, axis="y")
    figure.legend(title="running statistics", loc="outside lower center", ncols=3)
    return figure


def main(argv: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """Trains in each way; returns the test accuracies of each, (epochs, seeds, tasks)."""
    parser = report.flags(
        "One network for two tasks, with running statistics shared or apart.", of_rate="Adam's", seeds=5
    )
    args, digits = report.parse(parser, argv)
    order = training.orders(len(digits.train_images), args)
    results = {}
    with tqdm(total=len(WAYS) * args.epochs, unit="epoch") as bar:
        for way in WAYS:
            bar.set_description(way)
            create = functools.partial(create_state, inputs=digits.train_images[0].size, way=way)
            states = training.create_states(create, args)
            step = functools.partial(train_step, way=way, learning_rate=args.learning_rate)
            test = functools.partial(evaluate, digits=digits, way=way)
            _, results[way] = training.train(step, states, order, digits[:2], evaluate=test, bar=bar)
    rows = {way: [trials.spread(a) for a in values[-1].T] for way, values in results.items()}
    print(trials.table("running statistics", TASKS, rows))
    trials.save(draw(results), args.out / "multi_task.png")
    return results


if __name__ == "__main__":
    main()
