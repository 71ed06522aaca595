"""Averages of weights, with which no running statistics were gathered: recalibrated, and not.

    python examples/recalibrate.py

A small CNN on digits, trained by `optax.contrib.schedule_free_sgd`, which is to be evaluated at an
average of its weights, and by SGD with momentum, with an exponential average of weights beside it.
Batch norm's momentum is 0.9, or 0.99 as by default. The last weights and the average are evaluated with

    running           the running statistics of the training
    averaged          an average of these like that of the weights (SGD)
    recalibrated      those that `jbn.tools.recalibrate` gathers over the training images
    layer by layer    likewise, each layer seeing what the final statistics of those before make

Prints the test accuracy of each, with its spread over the seeds, and draws it.
"""

from shared import flags

parser = flags.parser(
    "Averages of weights, with running and with recalibrated statistics.",
    epochs=4,
    learning_rate=0.3,
    of_rate="schedule-free SGD's; SGD with momentum has a tenth",
    seeds=5,
)
if __name__ == "__main__":
    parser.parse_args()  # before the imports that take seconds, so that --help does not

import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from tqdm import tqdm

import jbn
from models.cnn import CNN
from shared import data, pictures, report, runs, training

DECAY = 0.98
CALIBRATION_BATCH = 128
MOMENTA = (0.9, 0.99)
OPTIMIZERS: dict[str, training.Optimizer] = {
    "schedule-free": optax.contrib.schedule_free_sgd,
    "SGD": lambda learning_rate: optax.sgd(learning_rate / 10, momentum=0.9),
}
COLUMNS = ("running", "averaged", "recalibrated", "layer by layer")
Accuracies = dict[tuple[str, str], dict[str, list[float]]]


class Averaged(NamedTuple):
    """The training, and an average of its parameters and statistics."""

    state: training.State
    average: tuple[Any, Any]


def step(carried: Averaged, images: Any, labels: Any, **options: Any) -> tuple[Averaged, jax.Array]:
    """One of training, and one of the average."""
    state, loss = training.train_step(carried.state, images, labels, **options)
    average = move(carried.average, (state.params, state.batch_stats))
    return Averaged(state, average), loss


@jax.jit
def move(average: Any, new: Any) -> Any:
    """The exponential average, of one more."""
    return optax.incremental_update(new, average, 1 - DECAY)


def of_calibration(model: CNN, images: jax.Array) -> jax.Array:
    """How the model is called."""
    return model(images, train=False)


def statistics(model: CNN, params: Any, running: Any, averaged: Any, images: Any) -> dict[str, Any]:
    """Those to evaluate these parameters with."""
    found = {"running": running} if averaged is None else {"running": running, "averaged": averaged}
    batches = np.split(images, range(CALIBRATION_BATCH, len(images), CALIBRATION_BATCH))
    variables = {"params": params, "batch_stats": running}
    recalibrate = functools.partial(
        jbn.tools.recalibrate, model, variables, batches, call=of_calibration
    )
    for name, layer_by_layer in (("recalibrated", False), ("layer by layer", True)):
        found[name] = recalibrate(layer_by_layer=layer_by_layer)["batch_stats"]
    return found


def draw(accuracies: Accuracies) -> Figure:
    """The accuracy with each of the statistics."""
    figure = Figure(figsize=(8, 4.8), dpi=110, layout="constrained")
    axes = figure.subplots()
    for index, (key, of_column) in enumerate(accuracies.items()):
        x = [COLUMNS.index(name) + 0.08 * (index - 3) for name in of_column]
        values = np.transpose(list(of_column.values()))
        pictures.points(axes, x, values, report.label(key), linestyle="")
    axes.set_xticks(range(len(COLUMNS)), COLUMNS)
    pictures.accuracy_axis(axes)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=1))
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def main(argv: Sequence[str] | None = None) -> Accuracies:
    """Trains and evaluates; returns the accuracies of each seed, by weights and by statistics."""
    args, digits = data.start(parser, argv)
    accuracies: Accuracies = {}
    settings = list(itertools.product(MOMENTA, OPTIMIZERS))
    with tqdm(total=len(settings) * args.seeds * args.epochs, unit="epoch") as bar:
        for momentum, name in settings:
            label = f"{name}, momentum {momentum}"
            bar.set_description(label)
            model = CNN(functools.partial(jbn.linen.BatchNorm, momentum=momentum), features=(16, 32))
            network, optimizer = training.Linen(model), OPTIMIZERS[name]
            options = {"learning_rate": args.learning_rate, "optimizer": optimizer}
            predict = functools.partial(training.predict, network=network)
            for seed in flags.seeds(args):
                start = training.create_state(network, digits.train_images, seed, optimizer)
                (state, average), _ = runs.record(
                    Averaged(start, (start.params, start.batch_stats)),
                    functools.partial(step, network=network, **options),
                    lambda carried, images, predict=predict: predict(carried.state, images),
                    digits,
                    args,
                    bar,
                    seed=seed,
                )
                if name == "schedule-free":
                    params = optax.contrib.schedule_free_eval_params(state.opt_state, state.params)
                    average = params, None
                for weights, (params, averaged) in (
                    ("last", (state.params, None)),
                    ("average", average),
                ):
                    row = accuracies.setdefault((label, weights), {})
                    images, running = digits.train_images, state.batch_stats
                    for column, stats in statistics(model, params, running, averaged, images).items():
                        evaluated = training.State(params, stats, None)
                        row.setdefault(column, []).append(runs.accuracy(predict, evaluated, digits))
    rows = {
        report.label(key): [report.spread(row[name]) if name in row else "" for name in COLUMNS]
        for key, row in accuracies.items()
    }
    print(report.table("weights", COLUMNS, rows))
    pictures.save(draw(accuracies), args.out / "recalibrate.png")
    return accuracies


if __name__ == "__main__":
    main()
