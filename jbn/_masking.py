"""What is masked: the weights of samples, and the one rule for values that do not count.

A value of weight 0 may be anything. In sums it is 0. Where it is used by itself, as in the slope of its
own output, it stays what it is, unless its square is not finite: then it is 0 too, so that no infinity
times zero can poison a sum.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.typing import ArrayLike

from jbn import _checks, _dtypes
from jbn._typing import Array
from jbn.ops.reduction import Reduction


def mask_array(mask: Any, shape: tuple[int, ...]) -> Array:
    """`mask` with as many dimensions as `x`, whatever it broadcasts from; weights are not negative."""
    given, mask = mask, _checks.array("mask", mask, jnp.generic)
    real = jnp.issubdtype(mask.dtype, jnp.number) and not jnp.iscomplexobj(mask)
    if mask.dtype != bool and not real:
        raise TypeError(f"`mask` must be boolean or real weights >= 0, got dtype {mask.dtype}")
    sizes = zip(reversed(mask.shape), reversed(shape), strict=False)
    if mask.ndim > len(shape) or not all(m in (1, n) for m, n in sizes):
        hint = "an axis along which it does not change, such as that of the features, is one of size 1"
        if mask.shape == tuple(shape[: mask.ndim]):
            ones = (1,) * (len(shape) - mask.ndim)
            hint = f"if its axes are the first ones of `x`: mask.reshape{mask.shape + ones}"
        raise ValueError(
            f"`mask` must broadcast against `x`, of shape {tuple(shape)}, got shape {mask.shape}; "
            f"{hint}"
        )
    if mask.dtype != bool and not isinstance(given, Tracer):
        weights = np.asarray(given)
        unfit = weights[~((weights >= 0) & (weights < np.inf))]
        if unfit.size:
            raise ValueError(f"`mask` must be boolean or weights >= 0, got {unfit[0]} among them")
    return lax.expand_dims(mask, range(len(shape) - mask.ndim))


def as_weights(mask: ArrayLike | None, x: Array) -> Array | None:
    """The mask, checked, of the rank of x: boolean, or in the real dtype of the statistics."""
    if mask is None:
        return None
    mask = mask_array(mask, x.shape)
    return mask if mask.dtype == bool else mask.astype(_dtypes.real(_dtypes.promote(x.dtype)))


def present(weights: Array) -> Array:
    """Where values count."""
    return weights if weights.dtype == bool else weights > 0


def counted(weights: Array | None, v: Array) -> Array:
    """v where it counts, 0 elsewhere."""
    return v if weights is None else jnp.where(present(weights), v, 0)


def weighted(weights: Array | None, v: Array) -> Array:
    """w * v, for a sum."""
    if weights is not None and weights.dtype != bool:
        v = weights.astype(v.dtype) * v
    return counted(weights, v)


def harmless(weights: Array | None, d: Array) -> Array:
    """d as it is, but 0 where it is masked and its square is not finite."""
    if weights is None:
        return d
    return jnp.where(present(weights) | jnp.isfinite(squared(d)), d, 0)


def squared(d: Array) -> Array:
    """|d|^2, real for complex d."""
    if jnp.iscomplexobj(d):
        return lax.square(d.real) + lax.square(d.imag)
    return lax.square(d)


def count(reduction: Reduction, weights: Array, shape: tuple[int, ...]) -> Array:
    """The sum of weights that broadcast to `shape`, per statistic; a boolean mask counts exactly."""
    dtype = jnp.int32 if weights.dtype == bool else weights.dtype
    repeats = Reduction(tuple(a for a in reduction.axes if weights.shape[a] == 1)).samples(shape)
    total = reduction.sum(weights.astype(dtype)) * repeats
    return jnp.broadcast_to(total, reduction.features(shape))
