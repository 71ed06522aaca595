"""Fine-tuning with few samples, and what may become of batch norm's running statistics in it.

    python examples/fine_tune.py

A small CNN learns the digits 0 to 4, gets a new last layer, and is fine-tuned by Adam on 10 images of
each of 5 to 9, in three ways:

    batch statistics          as in the first training
    running statistics        those of 0 to 4, which stay as they are: jbn.frozen(trainable_params=True)
    all of batch norm frozen  likewise, and scale and bias stay as they are: jbn.frozen()

Each seed has its own initial weights, 50 images and order of them. Prints the accuracy on the test
images of 5 to 9 after fine-tuning and its difference from the first way's, with their spread; draws it.
"""

from shared import flags

parser = flags.parser(
    "Fine-tuning on 10 images of each of 5 digits, with batch norm frozen or not.",
    epochs=40,
    batch_size=10,
    seeds=10,
)
if __name__ == "__main__":
    parser.parse_args()  # before the imports that take seconds, so that --help does not

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import optax
from matplotlib.figure import Figure
from tqdm import tqdm

import jbn
from models.cnn import CNN
from shared import data, pictures, report, runs, training

SAMPLES = 10
FIRST_EPOCHS, FIRST_BATCH = 5, 32


def network(norm: jbn.Norm) -> training.Linen:
    """The CNN with a norm; its variables are the same with any of them."""
    return training.Linen(CNN(functools.partial(jbn.linen.BatchNorm, momentum=0.9, norm=norm)))


NETWORK = network(jbn.plain)
WAYS = {
    "batch statistics": NETWORK,
    "running statistics": network(jbn.frozen(trainable_params=True)),
    "all of batch norm frozen": network(jbn.frozen()),
}


def only(digits: data.Digits, labels: Sequence[int]) -> data.Digits:
    """The images with one of these labels."""
    train, test = (np.isin(part, labels) for part in (digits.train_labels, digits.test_labels))
    return data.Digits(*(part[train] for part in digits[:2]), *(part[test] for part in digits[2:]))


def few(digits: data.Digits, seed: int) -> data.Digits:
    """The digits with `SAMPLES` training images of each label."""
    labels = digits.train_labels
    order = np.random.default_rng(seed).permutation(len(labels))
    chosen = np.concatenate([order[labels[order] == n][:SAMPLES] for n in np.unique(labels)])
    return digits._replace(train_images=digits.train_images[chosen], train_labels=labels[chosen])


def start(trained: training.State, seed: int, images: Any) -> training.State:
    """The trained network with a new last layer, and a new optimizer."""
    fresh, _ = NETWORK.init(jax.random.fold_in(jax.random.key(seed), 1), images[:1])
    params = {**trained.params, "Dense_0": fresh["Dense_0"]}
    return training.State(params, trained.batch_stats, optax.adam(0.0).init(params))


def draw(accuracies: dict[str, list[list[float]]], steps: int) -> Figure:
    """The accuracy against the step, of which there are `steps` in an epoch."""
    figure = Figure(figsize=(8, 4.8), dpi=110, layout="constrained")
    axes = figure.subplots(subplot_kw={"xlabel": "step of fine-tuning", "title": "digits 5 to 9"})
    for (name, values), style in zip(accuracies.items(), ("-", "--", ":"), strict=False):
        pictures.curve(axes, steps * np.arange(1, 1 + len(values[0])), values, name, style)
    pictures.accuracy_axis(axes)
    axes.legend()
    return figure


def main(argv: Sequence[str] | None = None) -> dict[str, list[list[float]]]:
    """Trains and fine-tunes; returns the accuracies of each way, (seeds, epochs)."""
    args, digits = data.start(parser, argv)
    known, new = only(digits, range(5)), only(digits, range(5, 10))
    predict = functools.partial(training.predict, network=NETWORK)
    before, accuracies = [], {name: [] for name in WAYS}
    with tqdm(total=args.seeds * (FIRST_EPOCHS + len(WAYS) * args.epochs), unit="epoch") as bar:
        for seed in flags.seeds(args):
            bar.set_description(f"seed {seed}")
            trained, run = training.train(
                NETWORK,
                known,
                args,
                bar,
                seed=seed,
                learning_rate=args.learning_rate,
                epochs=FIRST_EPOCHS,
                batch_size=FIRST_BATCH,
            )
            before.append(run.test_accuracy[-1])
            samples = few(new, seed)
            state = start(trained, seed, samples.train_images)
            for name, way in WAYS.items():
                options = {"network": way, "learning_rate": args.learning_rate}
                step = functools.partial(training.train_step, **options)
                _, run = runs.record(state, step, predict, samples, args, bar, seed=seed)
                accuracies[name].append(run.test_accuracy)
    print(f"0 to 4, before fine-tuning: {report.spread(before)}")
    last = {name: np.array(values)[:, -1] for name, values in accuracies.items()}
    first = last["batch statistics"]
    rows = {name: [report.spread(v), report.spread(v - first)] for name, v in last.items()}
    print(report.table("fine-tuned with", ["5 to 9, after it", "less the first, by seed"], rows))
    steps = 5 * SAMPLES // args.batch_size
    pictures.save(draw(accuracies, steps), args.out / "fine_tune.png")
    return accuracies


if __name__ == "__main__":
    main()
