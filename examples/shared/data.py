"""Handwritten digits: scikit-learn's small ones, or MNIST's files from a folder."""

import argparse
import gzip
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

GZIP = b"\x1f\x8b"
BYTES = b"\0\0\x08"


class Digits(NamedTuple):
    """Images, float32 (N, height, width, 1) in [0, 1], and labels, int32 (N,) from 0 to 9."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def start(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> tuple[argparse.Namespace, Digits]:
    """The flags and the digits that they name; makes the folder for the results."""
    args = parser.parse_args(argv)
    digits = load(args.data_dir)
    args.out.mkdir(parents=True, exist_ok=True)
    return args, digits


def load(folder: Path | None = None) -> Digits:
    """Reads the digits.

    Args:
        folder: where MNIST's four files are, compressed or not. None takes scikit-learn's 1,797 images
            of 8x8 pixels, which come with it: nothing is downloaded.

    Returns:
        The digits; the split into training and test images is always the same. With 360 test images
        one of them is 0.3%, and another split moves all accuracies by up to one percent.
    """
    if folder is None:
        pixels, labels = load_digits(return_X_y=True)
        split: list[Any] = train_test_split(
            np.float32(pixels).reshape(-1, 8, 8, 1) / 16,
            np.int32(labels),
            test_size=0.2,
            stratify=labels,
            random_state=1,
        )
        train_images, test_images, train_labels, test_labels = split
    else:
        train_images, test_images, train_labels, test_labels = (
            read_idx(folder / f"{part}-{kind}-ubyte")
            for kind in ("images-idx3", "labels-idx1")
            for part in ("train", "t10k")
        )
        train_images, test_images = (
            v[..., None].astype(np.float32) / 255 for v in (train_images, test_images)
        )
        train_labels, test_labels = (v.astype(np.int32) for v in (train_labels, test_labels))
    return Digits(train_images, train_labels, test_images, test_labels)


def read_idx(path: Path) -> np.ndarray:
    """The array of bytes in a file of MNIST's format, or in the same with .gz behind its name.

        0 0 8 rank | sizes, 4 bytes each, the high byte first | the values, the last axis fastest

    Raises:
        FileNotFoundError: there is neither.
        ValueError: it is not of this form.
    """
    found = path if path.is_file() else path.with_name(f"{path.name}.gz")
    raw = found.read_bytes()
    if raw.startswith(GZIP):
        raw = gzip.decompress(raw)
    if not raw.startswith(BYTES):
        raise ValueError(f"{found}: expected one of MNIST's files, got one that begins {raw[:4].hex()}")
    rank = raw[3]
    shape = np.frombuffer(raw, ">u4", rank, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)


def minibatches(size: int, batch_size: int, epochs: int, seed: int) -> Iterator[np.ndarray]:
    """Yields for each epoch the indices of its minibatches, int32 (size // batch_size, batch_size).

    The remainder of each shuffle is dropped: batches of one shape compile once, and a short last
    batch would have noisier statistics than the rest.
    """
    steps = size // batch_size
    if not steps:
        raise ValueError(f"`batch_size` must be at most {size}, the number of images, got {batch_size}")
    rng = np.random.default_rng(seed)
    for _ in range(epochs):
        order = rng.permutation(size)[: steps * batch_size]
        yield order.reshape(steps, batch_size).astype(np.int32)
