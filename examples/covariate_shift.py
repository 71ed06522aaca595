"""Figure 1 of Ioffe and Szegedy (2015) on these digits, and their claim about learning rates.

    python examples/covariate_shift.py

Their network, three layers of 100 sigmoid units, without batch norm and with it before each sigmoid,
trained by SGD on batches of 60. Prints the test accuracy after training for each learning rate, and
draws

    (a)       the test accuracy while training, at `--learning-rate`
    (b), (c)  the 15th, 50th and 85th percentile, over the test images, of the input to one sigmoid of
              the last hidden layer, without and with batch norm
    (d)       the accuracy after training against the learning rate: section 4 of the paper says that
              batch norm allows higher ones

The paper trains on MNIST for 50,000 steps, names neither the learning rate nor the deviation of its
"small random Gaussian values", here 0.1. All rates and seeds are trained side by side.
"""

from shared import flags

parser = flags.parser(
    "Sigmoid networks with and without batch norm, at learning rates from 0.001 to 30.",
    epochs=300,
    batch_size=60,
    learning_rate=1.0,
    of_rate="of the panels over the steps; it joins those of the last panel",
    seeds=5,
)
if __name__ == "__main__":
    parser.parse_args()  # before the imports that take seconds, so that --help does not

import argparse
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

RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
HIDDEN = 3 * (100,)
PERCENTILES = (15, 50, 85)
NAMES = {False: "no batch norm", True: "batch norm"}

network = functools.partial(mlp.apply, activation=jax.nn.sigmoid)
# The rate is part of the state, so that trainings with different ones are one program.
optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=0.0)


def loss(params: Any, batch_stats: Any, minibatch: Any) -> tuple[jax.Array, Any]:
    """The cross entropy of a minibatch, and the new statistics."""
    images, labels = minibatch
    logits, batch_stats = network(params, batch_stats, images, train=True, momentum=0.9)
    return side_by_side.cross_entropy(logits, labels), batch_stats


@jax.jit
def evaluate(states: side_by_side.State, images: Any, labels: Any) -> tuple[jax.Array, jax.Array]:
    """The accuracies, and the percentiles of the input to the first of the last sigmoids."""

    def one(state):
        logits, _ = network(state.params, state.batch_stats, images, train=False)
        inputs, _ = network(state.params[:-1], state.batch_stats, images, train=False)
        percentiles = jbn.tools.activation_percentiles(inputs[:, :1], PERCENTILES)
        return side_by_side.accuracy(logits, labels), percentiles[:, 0]

    return jax.vmap(one)(states)


def draw(
    records: Mapping[str, tuple[np.ndarray, np.ndarray]],
    rates: Sequence[float],
    chosen: int,
    steps: int,
) -> Figure:
    """The four panels; (a) to (c) at the rate of index `chosen`, with `steps` in an epoch."""
    figure = Figure(figsize=(10, 7.4), dpi=110, layout="constrained")
    (a, d), below = figure.subplots(2, 2)
    for (name, (accuracies, percentiles)), letter, axes in zip(
        records.items(), "bc", below, strict=True
    ):
        at = steps * np.arange(len(accuracies))
        pictures.curve(a, at, accuracies[:, chosen].T, name)
        pictures.points(d, rates, accuracies[-1].T, name)
        for percent, line in zip(PERCENTILES, percentiles[:, chosen, 0].T, strict=True):
            axes.plot(at, line, label=f"{percent}th percentile")
        axes.set(title=f"({letter}) {name}", xlabel="step", ylabel="input to one sigmoid")
        axes.grid(alpha=0.3)
    # The colours of both; in the other panel it would cover a line.
    below[1].legend(reverse=True)
    below[0].sharey(below[1])
    a.set(title=f"(a) learning rate {rates[chosen]:g}", xlabel="step")
    d.set(title="(d) after the last step", xlabel="learning rate (SGD)", xscale="log")
    for axes in (a, d):
        pictures.accuracy_axis(axes)
        axes.legend()
    return figure


def train(
    batch_norm: bool, rates: Sequence[float], digits: data.Digits, args: argparse.Namespace, bar: tqdm
) -> tuple[np.ndarray, np.ndarray]:
    """Accuracies (epochs + 1, rates, seeds) and percentiles (epochs + 1, rates, seeds, 3)."""
    bar.set_description(NAMES[batch_norm])
    images, labels, test_images, test_labels = map(jnp.asarray, digits)
    each_rate, each_seed = zip(*itertools.product(rates, flags.seeds(args)), strict=True)
    init = functools.partial(
        mlp.init,
        sizes=(images[0].size, *HIDDEN, 10),
        norm=jbn.plain if batch_norm else None,
        kernel_init=jax.nn.initializers.normal(0.1),
    )
    states = side_by_side.create(init, optimizer, each_seed)
    states.opt_state.hyperparams["learning_rate"] = jnp.array(each_rate)
    order = side_by_side.orders(len(images), args.batch_size, args.epochs, each_seed)
    test = functools.partial(evaluate, images=test_images, labels=test_labels)
    record = side_by_side.train(loss, optimizer, states, order, (images, labels), test, bar)
    shape = (args.epochs + 1, len(rates), args.seeds)
    accuracies, percentiles = (v.reshape(*shape, *v.shape[2:]) for v in record)
    return accuracies, percentiles


def main(argv: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """Trains all networks; returns the accuracies (epochs + 1, rates, seeds) without and with."""
    args, digits = data.start(parser, argv)
    rates = sorted({*RATES, args.learning_rate})
    with tqdm(total=2 * args.epochs, unit="epoch") as bar:
        records = {name: train(key, rates, digits, args, bar) for key, name in NAMES.items()}
    rows = {
        f"{rate:g}": [report.spread(accuracies[-1, index]) for accuracies, _ in records.values()]
        for index, rate in enumerate(rates)
    }
    print(report.table("learning rate", list(records), rows))
    steps = len(digits.train_images) // args.batch_size
    figure = draw(records, rates, rates.index(args.learning_rate), steps)
    pictures.save(figure, args.out / "covariate_shift.png")
    return {name: accuracies for name, (accuracies, _) in records.items()}


if __name__ == "__main__":
    main()
