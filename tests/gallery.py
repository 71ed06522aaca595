"""What the tests of the examples share: the modules, quick compilation, a small run, MNIST's files."""

import gzip
import importlib
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
LARGEST_PICTURE = 150_000

sys.path.insert(0, str(ROOT / "examples"))
example = importlib.import_module


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """Takes half the time, and the programs of these tests run for milliseconds however compiled.

    For every test of a module that imports it.
    """
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def run(name, folder, *flags, picture=None):
    """What `main` returns; there must be a picture of its name, and a small one."""
    returned = example(name).main([*flags, "--out", str(folder)])
    png = (folder / f"{picture or name}.png").read_bytes()
    assert png.startswith(b"\x89PNG\r\n\x1a\n") and len(png) < LARGEST_PICTURE
    return returned


def idx(array):
    """An array of bytes as MNIST stores it."""
    sizes = np.array(array.shape, ">u4").tobytes()
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def write_mnist(folder, train=96, test=20, pixels=(6, 5), compress=False):
    """Writes four small files in MNIST's format; returns what is in them."""
    rng = np.random.default_rng(0)
    arrays = {}
    for part, size in (("train", train), ("t10k", test)):
        arrays[f"{part}-images-idx3-ubyte"] = rng.integers(256, size=(size, *pixels))
        arrays[f"{part}-labels-idx1-ubyte"] = rng.integers(10, size=size)
    for name, array in arrays.items():
        if compress:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
        else:
            (folder / name).write_bytes(idx(array))
    return arrays
