"""What the examples share around their networks: the flags, the record of a run, the table of runs."""

import argparse
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

import data

GOAL = 0.97
MOST_SEEDS = 1000


class Run(NamedTuple):
    """One training run; the lists have one value per epoch."""

    name: str
    learning_rate: float
    test_accuracy: list[float]
    train_loss: list[float]
    seconds: list[float]

    @property
    def epochs_to_goal(self) -> int | None:
        """The first epoch, from 1, after which the test accuracy was at least `GOAL`."""
        reached = (epoch for epoch, a in enumerate(self.test_accuracy, 1) if a >= GOAL)
        return next(reached, None)

    @property
    def seconds_per_epoch(self) -> float:
        """The median, without the first epoch, which compiles, where there are others."""
        return statistics.median(self.seconds[1:] or self.seconds)


def flags(
    description: str,
    *,
    batch_size: int = 32,
    of_batch: str = "images in a minibatch",
    learning_rate: float = 1e-3,
    of_rate: str = "Adam's; every run is repeated at ten times this rate",
    epochs: int = 10,
    of_epochs: str = "passes over the training images in each run",
    seeds: int | None = None,
) -> argparse.ArgumentParser:
    """The flags of every example; an example may add its own before `parse`.

    Args:
        description: what the example does, in a line.
        batch_size, learning_rate, epochs: their defaults.
        of_batch, of_rate, of_epochs: what these are in this example.
        seeds: the default of `--seeds N`: every run is repeated with the N seeds from `--seed` on. None
            leaves this flag out.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--epochs",
        type=whole(1),
        default=epochs,
        help=f"{of_epochs} (default: %(default)s)",
    )
    parser.add_argument(
        "--batch-size",
        type=whole(2),
        default=batch_size,
        help=f"{of_batch}, at least 2 (default: %(default)s)",
    )
    parser.add_argument(
        "--learning-rate",
        type=_positive,
        default=learning_rate,
        help=f"{of_rate} (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=whole(0, 2**32 - MOST_SEEDS),
        default=0,
        help="of the initial parameters and the order of the images, the same in every run "
        "(default: %(default)s)"
        if seeds is None
        else "the first of the seeds, each of which is of all that is random in a run "
        "(default: %(default)s)",
    )
    if seeds is not None:
        parser.add_argument(
            "--seeds",
            type=whole(1, MOST_SEEDS),
            default=seeds,
            metavar="N",
            help="repeat every run with N seeds, from --seed on (default: %(default)s)",
        )
    parser.add_argument(
        "--data-dir",
        type=Path,
        help="folder with MNIST's four IDX files, train-images-idx3-ubyte[.gz] and so on "
        "(default: none; scikit-learn's 1,797 digits of 8x8 pixels are used)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("out"),
        help="folder for the results, made if missing (default: %(default)s)",
    )
    return parser


def parse(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, *, devices: int = 1
) -> tuple[argparse.Namespace, data.Digits]:
    """The flags, checked, and the digits they name; leaves with one line on a wrong flag.

    Args:
        parser: from `flags`.
        argv: the command line; None takes the program's.
        devices: how many devices `--batch-size` is for each of; `minibatch` among the flags is the
            number of images that all of them take together.
    """
    args = parser.parse_args(argv)
    try:
        digits = data.load(args.data_dir)
    except (OSError, ValueError) as error:
        parser.error(f"argument --data-dir: {error}")
    limit = len(digits.train_images) // devices
    if args.batch_size > limit:
        share = f" for each of {devices} devices" if devices > 1 else ""
        parser.error(
            f"argument --batch-size: must be at most {limit}, the number of training images{share}, "
            f"got {args.batch_size}"
        )
    args.minibatch = devices * args.batch_size
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"argument --out: cannot make the folder {args.out}: {error.strerror}")
    return args, digits


def whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """The type of a flag that is a whole number, from `low` to `high`."""

    def convert(text: str) -> int:
        limits = f"at least {low}" if high is None else f"from {low} to {high}"
        message = f"must be a whole number, {limits}, got {text}"
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(message) from None
        if value < low or (high is not None and value > high):
            raise argparse.ArgumentTypeError(message)
        return value

    return convert


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < 10 * value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a positive number, got {text}")
    return value


def record(
    name: str,
    learning_rate: float,
    state: Any,
    train_step: Callable[[Any, np.ndarray, np.ndarray], tuple[Any, Any]],
    predict: Callable[[Any, np.ndarray], Any],
    digits: data.Digits,
    args: argparse.Namespace,
    bar: tqdm,
    *,
    epochs: int | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
) -> tuple[Any, Run]:
    """Trains and takes notes.

    The loop over the minibatches is Python's: on a CPU, XLA runs a convolution inside a compiled loop
    (`lax.scan`) many times slower than outside one.

    Args:
        name, learning_rate: what tells this run from the others.
        state: whatever `train_step` carries on.
        train_step: (state, images, labels) -> (state, loss).
        predict: (state, images) -> logits.
        digits, args: from `parse`.
        bar: moved on by one per epoch.
        epochs, batch_size, seed: of this run, where they are not those of `args`.

    Returns:
        The final state, and the run.
    """
    run = Run(name, learning_rate, [], [], [])
    bar.set_description(f"{name}, rate {learning_rate:g}")
    images, labels = digits.train_images, digits.train_labels
    own = (batch_size, args.minibatch), (epochs, args.epochs), (seed, args.seed)
    settings = (default if value is None else value for value, default in own)
    for batches in data.shuffled_epochs(len(images), *settings):
        start = time.perf_counter()
        losses = []
        for batch in batches:
            state, loss = train_step(state, images[batch], labels[batch])
            losses.append(loss)
        # Reading the losses waits for the device, so the clock comes after it.
        run.train_loss.append(float(np.mean(jax.device_get(losses))))
        run.seconds.append(time.perf_counter() - start)
        run.test_accuracy.append(accuracy(predict, state, digits))
        bar.set_postfix_str(f"test accuracy {run.test_accuracy[-1]:.1%}")
        bar.update()
    return state, run


def accuracy(predict: Callable[[Any, np.ndarray], Any], state: Any, digits: data.Digits) -> float:
    """Share of the test images whose largest logit is their label's.

    In pieces of a thousand: all of MNIST's test images at once take gigabytes in a small network.
    """
    pieces = np.array_split(digits.test_images, math.ceil(len(digits.test_images) / 1000))
    predicted = np.concatenate([np.argmax(predict(state, piece), axis=-1) for piece in pieces])
    return float(np.mean(predicted == digits.test_labels))


def table(runs: Sequence[Run]) -> str:
    """One line per run."""
    width = max(len(run.name) for run in runs)
    lines = [f"{'':{width}}  learning rate  test accuracy  epochs to {GOAL:.0%}  seconds per epoch"]
    for run in runs:
        lines.append(
            f"{run.name:{width}}  {run.learning_rate:13g}  {run.test_accuracy[-1]:13.1%}"
            f"  {run.epochs_to_goal or 'never':>13}  {run.seconds_per_epoch:17.3f}"
        )
    return "\n".join(lines)
