"""A CNN trained on small batches: which statistics to infer with, chosen on validation images.

    python examples/tune_inference.py
    python examples/tune_inference.py --batch-size 4 --learning-rate 0.01

`jbn.tools.tune_inference` has the choice of the running statistics, of those gathered over the training
images once more, and of either with a weight for an image's own, as `jbn.weighted_inference` gives it.
Half of the test images are for the choice, by the loss, the others for the accuracies.

Prints the choice of the first seed; the validation loss and the test accuracy of each candidate, and of
what was chosen, with their spread over the seeds. Draws the accuracies.
"""

from shared import flags

parser = flags.parser(
    "A CNN trained on small batches, and the statistics of the least validation loss.",
    epochs=3,
    batch_size=2,
    learning_rate=0.005,
    of_rate="SGD's, with momentum 0.9",
    seeds=5,
)
if __name__ == "__main__":
    parser.parse_args()  # before the imports that take seconds, so that --help does not

import functools
import statistics
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import optax
from matplotlib.figure import Figure
from tqdm import tqdm

import jbn
from models.cnn import CNN
from shared import data, pictures, report, training

ALPHAS = (0.02, 0.05, 0.1, 0.2, 0.4)
NETWORK = training.Linen(CNN(jbn.linen.BatchNorm, features=(16, 32), strides=(1, 2)))
sgd = functools.partial(optax.sgd, momentum=0.9)


def losses(model: CNN, batch: Any) -> jax.Array:
    """The cross entropy of each image."""
    logits = model(batch[0], train=False)
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])


def errors(model: CNN, batch: Any) -> jax.Array:
    """1 for each image that is taken for another digit."""
    return (model(batch[0], train=False).argmax(-1) != batch[1]).astype("float32")


def draw(accuracies: dict[str, list[float]]) -> Figure:
    """The accuracy of each candidate."""
    figure = Figure(figsize=(8, 4.8), dpi=110, layout="constrained")
    axes = figure.subplots()
    for index, (name, values) in enumerate(accuracies.items()):
        pictures.points(axes, [index], np.reshape(values, (-1, 1)), name)
    axes.set_xticks(range(len(accuracies)), accuracies, rotation=60, ha="right")
    pictures.accuracy_axis(axes)
    return figure


def main(argv: Sequence[str] | None = None) -> dict[str, list[float]]:
    """Trains and chooses; returns the accuracies of each seed, by candidate."""
    args, digits = data.start(parser, argv)
    accuracies: dict[str, list[float]] = {}
    of_validation: dict[str, list[float]] = {}
    test = digits.test_images, digits.test_labels
    halves = [[tuple(v[half::2] for v in test)] for half in (0, 1)]
    with tqdm(total=args.seeds * args.epochs, unit="epoch") as bar:
        for seed in flags.seeds(args):
            options = {"learning_rate": args.learning_rate, "optimizer": sgd}
            state, _ = training.train(NETWORK, digits, args, bar, seed=seed, **options)
            (order,) = data.minibatches(len(digits.train_images), args.batch_size, 1, seed)
            tune = functools.partial(
                jbn.tools.tune_inference,
                NETWORK.model,
                {"params": state.params, "batch_stats": state.batch_stats},
                alphas=ALPHAS,
                calibration=[(digits.train_images[n], digits.train_labels[n]) for n in order],
            )
            choice, of_test = tune(halves[0], loss=losses), tune(halves[1], loss=errors)
            if not accuracies:
                print(choice)
            chosen = choice.statistics, choice.alpha
            for key, error in [*of_test.losses.items(), ("chosen", of_test.losses[chosen])]:
                loss = choice.losses[chosen if key == "chosen" else key]
                name = key if isinstance(key, str) else f"{key[0]}, alpha {key[1] or 0}"
                of_validation.setdefault(name, []).append(loss)
                accuracies.setdefault(name, []).append(1 - error)
    rows = {
        name: [f"{statistics.fmean(of_validation[name]):.4f}", report.spread(values)]
        for name, values in accuracies.items()
    }
    print(report.table("", ["validation loss", "test accuracy"], rows))
    pictures.save(draw(accuracies), args.out / "tune_inference.png")
    return accuracies


if __name__ == "__main__":
    main()
