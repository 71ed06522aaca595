"""The input of one layer, what a step is to make of it, and the refusal of anything else."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.shared.reference import EPSILON, error, gradient_error, reference

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
    """The arguments of a layer, the same for every library; few take a mask."""

    axis: int  # -1 or 1: of the features
    values: Values
    x: jax.Array
    dy: jax.Array
    mask: jax.Array | None = None

    @property
    def dtype(self) -> str:
        """Of x, by name."""
        return self.x.dtype.name

    @property
    def name(self) -> str:
        """The shape, and the axis where it is not the last."""
        return str(self.x.shape) + ("" if self.axis == -1 else f", axis {self.axis}")


def make(shape: Sequence[int], axis: int, dtype: str, seed: int, mean: float = 0.0) -> Case:
    """Random arrays, x distributed as the layer's output: y may be the x of the next step.

    By default well scaled, as behind a convolution: no channel's mean exceeds a third of its deviation.
    The running statistics are near those of the batch.

    Args:
        shape: of x.
        axis: of the features, -1 or 1.
        dtype: of x.
        seed: of the data.
        mean: of every channel, to be added.
    """
    rng = np.random.default_rng(seed)
    channels = shape[axis]
    scale, bias = rng.uniform(0.75, 1.25, channels), mean + rng.uniform(-0.25, 0.25, channels)
    # A larger variance than the batch's makes inference a contraction: fed back, y stays bounded.
    var = scale**2 * rng.uniform(1.2, 1.5, channels)
    statistics = scale, bias, bias + rng.uniform(-0.1, 0.1, channels), var
    values = Values(*(v.astype(np.float32) for v in statistics))
    last = [n for i, n in enumerate(shape) if i != axis % len(shape)] + [channels]
    x, dy = (rng.standard_normal(last, np.float32) for _ in range(2))
    x = x * values.scale + values.bias
    x, dy = (jnp.asarray(np.moveaxis(v, -1, axis), dtype) for v in (x, dy))
    return Case(axis, values, x, dy)


def expected(case: Case) -> dict[str, dict[str, np.ndarray]]:
    """By mode: y, and dx, dscale and dbias where there is a gradient, computed in float64."""
    x, dy = (np.moveaxis(np.asarray(v, np.float64), case.axis, -1) for v in (case.x, case.dy))
    scale, bias, mean, var = (v.astype(np.float64) for v in case.values)
    step = reference(x, dy, scale, bias)
    y = (x - mean) / np.sqrt(var + EPSILON) * scale + bias
    y, *placed = (np.moveaxis(v, -1, case.axis) for v in (y, step["y"], step["dx"]))
    both = dict(zip(("y", "dx"), placed, strict=True))
    both |= {name: step[name] for name in ("dscale", "dbias")}
    return {"forward+backward": both, "forward": {"y": both["y"]}, "inference": {"y": y}}


def errors(result: Mapping[str, Any], wanted: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Of y max |y - r| / max(1, |r|), of a gradient max |g - r| / max |r|; a NaN's is NaN."""
    return {
        name: (error if name == "y" else gradient_error)(np.reshape(result[name], r.shape), r)
        for name, r in wanted.items()
    }


def checked(result: Mapping[str, Any], wanted: Mapping[str, np.ndarray], dtype: str) -> float:
    """The worst error of a step.

    Args:
        result: y, dx, dscale, dbias, as many of them as `wanted` has; more are not looked at.
        wanted: of `expected`.
        dtype: the name of that of x, which has a tolerance.

    Raises:
        WrongResultError: an error is larger than the tolerance, or NaN, or y or dx has another dtype.
    """
    for name in ("y", "dx"):
        if name in wanted and result[name].dtype != jnp.dtype(dtype):
            raise WrongResultError(f"{name} is {result[name].dtype}, not {dtype}")
    found = errors(result, wanted)
    worst = max(found, key=lambda name: (np.isnan(found[name]), found[name]))
    if not found[worst] <= TOLERANCES[dtype]:
        limit = f"more than {TOLERANCES[dtype]:g}"
        raise WrongResultError(f"{worst} is wrong by {found[worst]:.1e}, {limit}")
    return found[worst]


def still_sane(result: Mapping[str, jax.Array]) -> None:
    """Refuses what many steps have blown up, shrunk to nothing or made NaN."""
    low, high = SANE
    for name in ("y", "dx"):
        if name in result:
            largest = float(jnp.max(jnp.abs(result[name])))
            if not low < largest < high:
                raise WrongResultError(f"after many steps the largest |{name}| is {largest:.1e}")
