"""The input of one layer, what a step is to make of it, and the refusal of anything else.

The data are well scaled, as behind a convolution: no channel's mean exceeds a third of its deviation.
The running statistics are near those of the batch. x is distributed as the layer's output, so that
thousands of steps that feed y back see the same kind of data.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.reference import EPSILON, reference

MODES = ("forward+backward", "forward", "inference")
MOMENTUM = 0.99
# Of the worst element of y and of the gradients: what sums of 400,000 elements may lose in the dtype.
TOLERANCES = {"float32": 1e-4, "bfloat16": 5e-2}
SANE = 1e-6, 1e3


class WrongResultError(Exception):
    """A step's result is not what it is to be: there is nothing to time."""


class Values(NamedTuple):
    """Parameters and running statistics, (C,) each, float32."""

    scale: np.ndarray
    bias: np.ndarray
    mean: np.ndarray
    var: np.ndarray


class Case(NamedTuple):
    """The arguments of a layer, the same for every library."""

    shape: tuple[int, ...]
    axis: int  # -1 or 1: of the features
    dtype: str
    values: Values
    x: jax.Array
    dy: jax.Array

    @property
    def name(self) -> str:
        """The shape, and the axis where it is not the last."""
        return str(self.shape) + ("" if self.axis == -1 else f", axis {self.axis}")


def make(shape: Sequence[int], axis: int, dtype: str, seed: int) -> Case:
    """Random arrays of this shape."""
    rng = np.random.default_rng(seed)
    channels = shape[axis]
    scale, bias = rng.uniform(0.75, 1.25, channels), rng.uniform(-0.25, 0.25, channels)
    # A larger variance than the batch's makes inference a contraction: fed back, y stays bounded.
    mean, var = bias + rng.uniform(-0.1, 0.1, channels), scale**2 * rng.uniform(1.2, 1.5, channels)
    values = Values(*(v.astype(np.float32) for v in (scale, bias, mean, var)))
    last = [n for i, n in enumerate(shape) if i != axis % len(shape)] + [channels]
    x, dy = (rng.standard_normal(last, np.float32) for _ in range(2))
    x = x * values.scale + values.bias
    x, dy = (jnp.asarray(np.moveaxis(v, -1, axis), dtype) for v in (x, dy))
    return Case(tuple(shape), axis, dtype, values, x, dy)


def expected(case: Case) -> dict[str, dict[str, jax.Array]]:
    """By mode: y, and dx, dscale and dbias where there is a gradient, computed in float64."""
    x, dy = (np.moveaxis(np.asarray(v, np.float64), case.axis, -1) for v in (case.x, case.dy))
    scale, bias, mean, var = (v.astype(np.float64) for v in case.values)
    training = reference(x, dy, scale, bias)
    y = (x - mean) / np.sqrt(var + EPSILON) * scale + bias

    def placed(name: str, value: np.ndarray) -> jax.Array:
        # Rounded to float32, which is far below the tolerance, only to be compared with.
        moved = np.moveaxis(value, -1, case.axis) if name in ("y", "dx") else value
        return jnp.asarray(moved, jnp.float32)

    step = {name: placed(name, training[name]) for name in ("y", "dx", "dscale", "dbias")}
    return {
        "forward+backward": step,
        "forward": {"y": step["y"]},
        "inference": {"y": placed("y", y)},
    }


@jax.jit
def _errors(a: jax.Array, r: jax.Array) -> tuple[jax.Array, jax.Array]:
    # Those of reference.py; here in JAX, because NumPy takes longer to compare than is timed.
    difference = jnp.abs(a.astype(jnp.float32) - r)
    largest = jnp.max(jnp.abs(r))
    return jnp.max(difference / jnp.maximum(1.0, jnp.abs(r))), jnp.max(difference) / largest


def checked(result: Mapping[str, Any], r: Mapping[str, jax.Array], dtype: str) -> float:
    """The worst error of a step: of y max |y - r| / max(1, |r|), of a gradient max |g - r| / max |r|.

    Args:
        result: y, dx, dscale, dbias, as many of them as `r` has; more are not looked at.
        r: of `expected`.
        dtype: the name of that of x, which has a tolerance.

    Raises:
        WrongResultError: an error is larger than the tolerance, or NaN, or y or dx has another dtype.
    """
    errors = {}
    for name, value in r.items():
        actual = jnp.asarray(result[name]).reshape(value.shape)
        if name in ("y", "dx") and actual.dtype != jnp.dtype(dtype):
            raise WrongResultError(f"{name} is {actual.dtype}, not {dtype}")
        errors[name] = float(_errors(actual, value)[name != "y"])
    worst = max(errors, key=lambda name: (np.isnan(errors[name]), errors[name]))
    if not errors[worst] <= TOLERANCES[dtype]:
        raise WrongResultError(
            f"{worst} is wrong by {errors[worst]:.1e}, more than {TOLERANCES[dtype]:g}"
        )
    return errors[worst]


def still_sane(arrays: Mapping[str, jax.Array]) -> None:
    """Refuses what many steps have blown up, shrunk to nothing or made NaN."""
    low, high = SANE
    for name, value in arrays.items():
        largest = float(jnp.max(jnp.abs(value)))
        if not low < largest < high:
            raise WrongResultError(f"after many steps the largest |{name}| is {largest:.1e}")
