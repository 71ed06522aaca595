"""Fine-tuning with few samples, and what may become of batch norm's running statistics in it.

    python examples/fine_tune.py

The network of digits_cnn.py learns the digits 0 to 4, gets a new last layer, and is fine-tuned by Adam
on 10 images of each of 5 to 9, in three ways:

    batch statistics          as in the first training
    running statistics        those of 0 to 4, which stay as they are, in each step too
    all of batch norm frozen  likewise, and scale and bias stay as they are: optax.multi_transform

Each seed has its own initial weights, 50 images and order of them. Prints the accuracy on the test
images of 5 to 9 after fine-tuning and its difference from the first way's, with their spread; draws it.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from matplotlib.figure import Figure
from tqdm import tqdm

import data
import report
import trials
from digits_cnn import CNN
from linen_training import Optimizer, State, predict, train, train_step

SAMPLES = 10
FIRST_EPOCHS, FIRST_BATCH = 5, 32
MODEL = CNN(batch_norm=True)


def frozen_affine(learning_rate: Any) -> optax.GradientTransformation:
    """Adam for all parameters but scale and bias, which stay as they are."""

    def labels(params):
        return {name: "affine" if name.startswith("BatchNorm") else "rest" for name in params}

    transforms: dict[Any, Any] = {"affine": optax.set_to_zero(), "rest": optax.adam(learning_rate)}
    return optax.multi_transform(transforms, labels)


class Way(NamedTuple):
    """Whether a step uses the batch's statistics, and what it changes the parameters by."""

    train: bool
    optimizer: Optimizer


WAYS = {
    "batch statistics": Way(True, optax.adam),
    "running statistics": Way(False, optax.adam),
    "all of batch norm frozen": Way(False, frozen_affine),
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


def start(trained: State, seed: int, images: np.ndarray, way: Way) -> State:
    """The trained network with a new last layer, and a new optimizer."""
    key = jax.random.fold_in(jax.random.key(seed), 1)
    fresh = MODEL.init(key, images[:1], train=False)["params"]
    params = {**trained.params, "Dense_0": fresh["Dense_0"]}
    return State(params, trained.batch_stats, way.optimizer(0.0).init(params))


def main(argv: Sequence[str] | None = None) -> dict[str, list[list[float]]]:
    """Trains and fine-tunes; returns the accuracies of each way, (seeds, epochs)."""
    parser = report.flags(
        "Fine-tuning on 10 images of each of 5 digits, with batch norm frozen or not.",
        batch_size=10,
        of_rate="Adam's",
        epochs=40,
        of_epochs="passes over the few images",
        seeds=10,
    )
    args, digits = report.parse(parser, argv)
    images, rate = 5 * SAMPLES, args.learning_rate
    if args.batch_size > images:
        limit = f"must be at most {images}, the number of images here, got {args.batch_size}"
        parser.error(f"argument --batch-size: {limit}")
    known, new = only(digits, range(5)), only(digits, range(5, 10))
    logits = functools.partial(predict, model=MODEL)
    fine_tune_step = functools.partial(train_step, model=MODEL, learning_rate=rate)
    before, accuracies = [], {name: [] for name in WAYS}
    with tqdm(total=args.seeds * (FIRST_EPOCHS + len(WAYS) * args.epochs), unit="epoch") as bar:
        for seed in trials.seeds(args):
            first = {"epochs": FIRST_EPOCHS, "batch_size": FIRST_BATCH}
            trained, run = train(MODEL, "0 to 4", rate, seed, known, args, bar, **first)
            before.append(run.test_accuracy[-1])
            samples = few(new, seed)
            for name, way in WAYS.items():
                state = start(trained, seed, samples.train_images, way)
                step = functools.partial(fine_tune_step, **way._asdict())
                _, run = report.record(name, rate, state, step, logits, samples, args, bar, seed=seed)
                accuracies[name].append(run.test_accuracy)
    print(f"0 to 4, before fine-tuning: {trials.spread(before)}")
    last = {name: np.array(values)[:, -1] for name, values in accuracies.items()}
    rows = {n: [trials.spread(v), trials.spread(v - last["batch statistics"])] for n, v in last.items()}
    print(trials.table("fine-tuned with", ["5 to 9, after it", "less the first, seed by seed"], rows))
    figure = Figure(figsize=(8, 4.8), dpi=110, layout="constrained")
    axes = figure.subplots(subplot_kw={"xlabel": "step of fine-tuning", "title": "digits 5 to 9"})
    steps = images // args.batch_size * np.arange(1, args.epochs + 1)
    for (name, values), style in zip(accuracies.items(), ("-", "--", ":"), strict=True):
        trials.curve(axes, steps, values, name, style)
    trials.accuracy_axis(axes)
    trials.save(figure, args.out / "fine_tune.png")
    return accuracies


if __name__ == "__main__":
    main()
