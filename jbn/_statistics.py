"""Mean, variance and count of every channel: over axes, under a mask, across devices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jbn import _across_devices, _dtypes, _masking
from jbn._typing import Array
from jbn.ops.local_moments import local_moments
from jbn.ops.reduction import Reduction


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Moments:
    """Statistics of a batch, one value per channel, float32 at least.

    Attributes:
        mean: weighted mean, rounded to its dtype.
        var: biased (population) variance about the exact mean, >= 0.
        count: the sum of the weights: the number of samples where there is no mask.
        remainder: exact mean minus `mean`. At a mean of 1e5 float32 rounds in steps of 0.008, and
            `(x - mean) - remainder` is exact where `x - mean` has lost three digits.
    """

    mean: Array | np.ndarray
    var: Array | np.ndarray
    count: Array | np.ndarray | None = None
    remainder: Array | np.ndarray | None = None


# Traced once, not in each of the functions and rules that call it.
@jax.jit
def batch_moments(
    reduction: Reduction, x: Array, weights: Array | None, shift: Array | None
) -> Moments:
    """The forward pass of `jbn.moments`, on checked arguments and without a derivative rule."""
    dtype = _dtypes.real(_dtypes.promote(x.dtype))
    if weights is None:
        count = jnp.full(reduction.features(x.shape), reduction.samples(x.shape), dtype)
    else:
        count = _masking.count(reduction, weights, x.shape).astype(dtype)
    mean, remainder, var = local_moments(reduction, x, weights, count, shift)
    if reduction.axis_name is not None:
        mean, remainder, var, count = _across_devices.merged(reduction, mean, remainder, var, count)
    return Moments(mean, var, count, remainder)
