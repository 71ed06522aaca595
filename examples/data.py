"""Handwritten digits for the examples: scikit-learn's small ones, or MNIST's files from a folder."""

import gzip
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

UNSIGNED_BYTE = 0x08
GZIP_MAGIC = b"\x1f\x8b"


class Digits(NamedTuple):
    """Images, float32 (N, height, width, 1) in [0, 1], and labels, int32 (N,) from 0 to 9."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def load(data_dir: Path | None = None) -> Digits:
    """Reads the digits.

    Args:
        data_dir: folder with MNIST's four IDX files, compressed or not. None takes scikit-learn's
            1,797 images of 8x8 pixels, which come with it: nothing is downloaded.

    Returns:
        The digits; the split into training and test images is always the same. With 360 test images
        one of them is 0.3%, and another split moves all accuracies by up to one percent.

    Raises:
        OSError, ValueError: a file is missing or is not what its name says.
    """
    return _scikit_learn() if data_dir is None else _mnist(data_dir)


def _scikit_learn() -> Digits:
    pixels, labels = load_digits(return_X_y=True)
    split: list[Any] = train_test_split(
        np.reshape(pixels, (-1, 8, 8, 1)).astype(np.float32) / 16,
        np.asarray(labels, np.int32),
        test_size=0.2,
        stratify=labels,
        random_state=1,
    )
    train_images, test_images, train_labels, test_labels = split
    return Digits(train_images, train_labels, test_images, test_labels)


def _mnist(folder: Path) -> Digits:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: expected a folder with MNIST's IDX files, found none")
    train = _labelled(folder, "train")
    test = _labelled(folder, "t10k")
    if train[0].shape[1:] != test[0].shape[1:]:
        raise ValueError(
            f"{folder}: expected training and test images of one size, "
            f"got {train[0].shape[1:3]} and {test[0].shape[1:3]}"
        )
    return Digits(*train, *test)


def _labelled(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    images_path = find_idx(folder, f"{part}-images-idx3-ubyte")
    labels_path = find_idx(folder, f"{part}-labels-idx1-ubyte")
    images = read_idx(images_path, rank=3)
    labels = read_idx(labels_path, rank=1)
    if not images.size:
        raise ValueError(f"{images_path}: expected at least one image, got shape {images.shape}")
    if len(labels) != len(images):
        raise ValueError(
            f"{labels_path}: expected {len(images)} labels, one per image, got {len(labels)}"
        )
    if labels.max() > 9:
        raise ValueError(f"{labels_path}: expected labels from 0 to 9, got {labels.max()}")
    return images[..., None].astype(np.float32) / 255, labels.astype(np.int32)


def find_idx(folder: Path, name: str) -> Path:
    """The path of the file `name` or `name`.gz in `folder`; FileNotFoundError if there is neither."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise FileNotFoundError(f"{folder / name}: expected this file, or the same with .gz, found neither")


def read_idx(path: Path, rank: int) -> np.ndarray:
    """Reads a file of unsigned bytes in MNIST's IDX format.

        0 0 8 rank | sizes, 4 bytes each, the high byte first | the values, the last axis fastest

    Args:
        path: the file. Its first bytes tell whether it is compressed: browsers drop or keep `.gz`
            as they like.
        rank: number of axes it must have.

    Returns:
        uint8 array.

    Raises:
        ValueError: the file is not of this form.
    """
    raw = path.read_bytes()
    if raw.startswith(GZIP_MAGIC):
        try:
            raw = gzip.decompress(raw)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(
                f"{path}: expected a whole gzip file, got a damaged one ({error})"
            ) from error
    magic = bytes([0, 0, UNSIGNED_BYTE, rank])
    header = 4 + 4 * rank
    if raw[:4] != magic or len(raw) < header:
        raise ValueError(
            f"{path}: expected an IDX file of unsigned bytes with {rank} axes, which begins with "
            f"{magic.hex(' ')}, got {raw[:4].hex(' ') or 'an empty file'}"
        )
    shape = tuple(np.frombuffer(raw, ">u4", rank, 4).tolist())
    if len(raw) - header != math.prod(shape):
        raise ValueError(
            f"{path}: expected {math.prod(shape)} bytes of values for its shape {shape}, "
            f"got {len(raw) - header}"
        )
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)


def shuffled_epochs(size: int, batch_size: int, epochs: int, seed: int) -> Iterator[np.ndarray]:
    """Yields for each epoch the indices of its minibatches, int32 (size // batch_size, batch_size).

    The remainder of each shuffle is dropped: batches of one shape compile once, and a short last
    batch would have noisier statistics than the rest.
    """
    rng = np.random.default_rng(seed)
    steps = size // batch_size
    for _ in range(epochs):
        order = rng.permutation(size)[: steps * batch_size]
        yield order.reshape(steps, batch_size).astype(np.int32)


def long_tail(labels: np.ndarray, ratio: float, seed: int) -> np.ndarray:
    """Indices of a training set whose classes become rarer from the first to the last.

    Args:
        labels: of all the images, from 0 to 9.
        ratio: how many times more images class 0, of which all are taken, has than class 9. The sizes
            between are a geometric sequence.
        seed: of which images of each class are taken.

    Returns:
        int32 indices, as many for every seed.
    """
    rng = np.random.default_rng(seed)
    most = np.count_nonzero(labels == 0)
    sizes = np.maximum(1, np.rint(most * np.power(ratio, -np.arange(10) / 9))).astype(int)
    members = (rng.permutation(np.flatnonzero(labels == label)) for label in range(10))
    return np.concatenate([m[:n] for m, n in zip(members, sizes, strict=True)]).astype(np.int32)
