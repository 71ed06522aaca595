"""What the tests of the examples share: their modules, and few digits."""

import importlib
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
PROGRAMS = sorted(path.stem for path in (ROOT / "examples").glob("*.py"))

sys.path.insert(0, str(ROOT / "examples"))
example = importlib.import_module


@pytest.fixture
def few_digits(monkeypatch):
    """Makes the programs read few digits."""
    data = example("shared.data")
    digits = data.Digits(*(part[:256] for part in data.load()))
    monkeypatch.setattr(data, "load", lambda folder=None: digits)
    return digits


def close(actual, expected, rtol=1e-4, atol=1e-5):
    """The leaves of two trees agree."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), actual, expected)
