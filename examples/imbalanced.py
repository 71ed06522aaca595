"""Classes of unequal frequency: the statistics of the majority, or of all classes alike.

    python examples/imbalanced.py

Dense 128 - batch norm - ReLU - Dense 10, trained on digits of which 0 is the most frequent and 9 fifty
times rarer, and tested on equally many of each. Weights of inverse class frequency as the `mask` make
the classes count alike in the statistics of a batch; they also make these noisy, for the few rare
images of a batch, or none, weigh as much as all the others. Each with the plain cross entropy as the
loss and with one weighted in the same way. Prints the mean accuracy of the ten classes and of the
rarest three; each seed draws training images of its own. Draws the accuracy of each class.
"""

from shared import flags

parser = flags.parser("Batch norm on classes of 1 to 50 in frequency.", epochs=30, seeds=10)
if __name__ == "__main__":
    parser.parse_args()  # before the imports that take seconds, so that --help does not

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from tqdm import tqdm

import jbn
from models import mlp
from shared import data, pictures, report, side_by_side

CLASSES, HIDDEN = 10, 128
RATIO = 50
RAREST = 3
LOSSES = ("plain loss", "weighted loss")
NORMS = ("no batch norm", "plain", "weighted")


def long_tail(labels: np.ndarray, seed: int) -> np.ndarray:
    """Indices of a training set whose classes become rarer from the first to the last.

    All of class 0 and a fiftieth of that of class 9, the sizes between a geometric sequence; which
    images of a class is the seed's, how many is not.
    """
    rng = np.random.default_rng(seed)
    most = np.count_nonzero(labels == 0)
    sizes = np.maximum(1, np.rint(most * np.power(RATIO, -np.arange(CLASSES) / (CLASSES - 1))))
    members = (rng.permutation(np.flatnonzero(labels == label)) for label in range(CLASSES))
    return np.concatenate([m[: int(n)] for m, n in zip(members, sizes, strict=True)])


def loss(
    params: Any, batch_stats: Any, minibatch: Any, *, of_loss: str, of_norm: str
) -> tuple[jax.Array, Any]:
    """The cross entropy of a minibatch, and the new statistics; each weighted or not."""
    images, labels, weights = minibatch
    mask = weights[:, None] if of_norm == "weighted" else None
    logits, batch_stats = mlp.apply(params, batch_stats, images, train=True, momentum=0.9, mask=mask)
    weights = weights if of_loss == "weighted loss" else None
    return side_by_side.cross_entropy(logits, labels, weights), batch_stats


@jax.jit
def evaluate(states: side_by_side.State, digits: data.Digits) -> jax.Array:
    """The accuracy of each class for each seed, (seeds, classes)."""

    def one(state):
        logits, _ = mlp.apply(state.params, state.batch_stats, digits.test_images, train=False)
        correct = jnp.argmax(logits, axis=-1) == digits.test_labels
        members = jnp.arange(CLASSES)[:, None] == digits.test_labels
        return jnp.sum(members & correct, axis=1) / jnp.sum(members, axis=1)

    return jax.vmap(one)(states)


def draw(results: Mapping[tuple[str, str], np.ndarray], sizes: np.ndarray) -> Figure:
    """The accuracy of each class, mean and deviation, one side for each loss."""
    figure = Figure(figsize=(11, 4.8), dpi=100, layout="constrained")
    sides = dict(zip(LOSSES, figure.subplots(1, 2, sharey=True), strict=True))
    for index, norm in enumerate(NORMS):
        places = 0.15 * (index - 1) + np.arange(CLASSES)
        for name, axes in sides.items():
            pictures.points(axes, places, results[name, norm], norm)
    for name, axes in sides.items():
        pictures.accuracy_axis(axes, "test accuracy of the digit" if name == LOSSES[0] else "")
        axes.set(title=name, xlabel="digit, and its number of training images")
        axes.set_xticks(range(CLASSES), [f"{c}\n{n}" for c, n in enumerate(sizes)])
    entries: Any = sides[LOSSES[0]].get_legend_handles_labels()
    figure.legend(*entries, title="statistics of a batch", loc="outside lower center", ncols=3)
    return figure


def main(argv: Sequence[str] | None = None) -> dict[tuple[str, str], np.ndarray]:
    """Trains each norm with each loss; returns the accuracies (seeds, classes)."""
    args, digits = data.start(parser, argv)
    seeds, labels = flags.seeds(args), digits.train_labels
    chosen = np.stack([long_tail(labels, seed) for seed in seeds])
    sizes = np.bincount(labels[chosen[0]], minlength=CLASSES)
    weights = (1 / sizes).astype(np.float32)[labels]
    arrays = tuple(map(jnp.asarray, (digits.train_images, labels, weights)))
    optimizer = optax.adam(args.learning_rate)
    of_each = np.arange(len(seeds))[:, None, None]
    results = {}
    with tqdm(total=len(LOSSES) * len(NORMS) * args.epochs, unit="epoch") as bar:
        for name, norm in itertools.product(LOSSES, NORMS):
            bar.set_description(f"{norm}, {name}")
            create = functools.partial(
                mlp.init,
                sizes=(arrays[0][0].size, HIDDEN, CLASSES),
                norm=None if norm == "no batch norm" else jbn.plain,
            )
            orders = side_by_side.orders(chosen.shape[1], args.batch_size, args.epochs, seeds)
            record = side_by_side.train(
                functools.partial(loss, of_loss=name, of_norm=norm),
                optimizer,
                side_by_side.create(create, optimizer, seeds),
                (chosen[of_each, order] for order in orders),
                arrays,
                functools.partial(evaluate, digits=digits),
                bar,
            )
            results[name, norm] = record[-1]
    rows = {
        norm: [
            report.spread(part.mean(1))
            for name in LOSSES
            for part in (results[name, norm], results[name, norm][:, -RAREST:])
        ]
        for norm in NORMS
    }
    columns = [f"{name}: {part}" for name in LOSSES for part in ("all", f"rarest {RAREST}")]
    print(report.table("statistics", columns, rows))
    pictures.save(draw(results, sizes), args.out / "imbalanced.png")
    return results


if __name__ == "__main__":
    main()
