"""The flags of a program; no import in here takes time, so that --help does not."""

import argparse
from collections.abc import Callable
from pathlib import Path


def parser(
    description: str,
    *,
    epochs: int = 10,
    of_epochs: str = "passes over the training images in each run",
    batch_size: int = 32,
    of_batch: str = "images in a minibatch",
    learning_rate: float = 1e-3,
    of_rate: str = "Adam's",
    seeds: int | None = None,
    digits: bool = True,
) -> argparse.ArgumentParser:
    """The flags that the programs have in common; a program may add its own.

    Args:
        description: what the program does, in a line.
        epochs, batch_size, learning_rate: defaults.
        of_epochs, of_batch, of_rate: what these are in this program.
        seeds: the default of `--seeds`; None leaves this flag out.
        digits: whether these are its data, so that there is `--data-dir`.
    """
    out = argparse.ArgumentParser(description=description)

    def add(name, convert, default, text):
        out.add_argument(name, type=convert, default=default, help=f"{text} (default: {default})")

    add("--epochs", whole(1), epochs, of_epochs)
    add("--batch-size", whole(2), batch_size, of_batch)
    add("--learning-rate", positive, learning_rate, of_rate)
    add("--seed", whole(0), 0, "of all that is random" if seeds is None else "the first of the seeds")
    if seeds is not None:
        add("--seeds", whole(1), seeds, "how often every run is repeated, from other random numbers")
    add("--out", Path, Path("out"), "folder for the results, made if missing")
    if digits:
        out.add_argument(
            "--data-dir",
            type=Path,
            help="folder with MNIST's four files, train-images-idx3-ubyte[.gz] and so on "
            "(default: none; scikit-learn's 1,797 digits of 8x8 pixels are used)",
        )
    return out


def whole(least: int) -> Callable[[str], int]:
    """The type of a flag that is a whole number, at least `least`."""

    def convert(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"must be a whole number, at least {least}, got {text}")
        return int(text)

    return convert


def positive(text: str) -> float:
    """The type of a flag that is a positive, finite number."""
    try:
        if 0 < float(text) < float("inf"):
            return float(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"must be a positive number, got {text}")


def seeds(args: argparse.Namespace) -> range:
    """The seeds that `--seed` and `--seeds` name."""
    return range(args.seed, args.seed + args.seeds)
