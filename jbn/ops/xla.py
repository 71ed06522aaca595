"""The passes over the data in plain jnp, for XLA to fuse.

Two ways to the same numbers, chosen by the platform that the program is lowered for:

- On a CPU: E[x] and E[x^2], and a `lax.cond` that sums again about the mean where E[x^2] - E[x]^2
  would lose digits in any channel. The predicate costs nothing there.
- Elsewhere: always the second pass, because a data-dependent branch may make the host wait for the
  device.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jbn import _dtypes

Array = jax.Array
Axes = tuple[int, ...]

# E[x^2] - E[x]^2 loses mean^2 / var of its precision: it is taken where that is at most 1.
_WELL_CONDITIONED = 1.0
# A channel whose deviation is within so many roundings of its mean may be one repeated value.
_ROUNDINGS = 16.0


def moments(x: Array, weights: Array | None, count: Array, axes: Axes) -> tuple[Array, Array, Array]:
    """Weighted mean, its remainder and variance of `x` over `axes`; see `jbn.moments`.

    Args:
        x: real or complex; may be anything where the weight is 0.
        weights: non-negative, of the rank of `x`, broadcasting against it; None for all ones.
        count: the sum of the weights per channel.
        axes: the axes to reduce.
    """
    return jax.lax.platform_dependent(
        x,
        weights,
        count,
        cpu=functools.partial(_one_pass_if_well_conditioned, axes=axes),
        default=functools.partial(_two_passes, axes=axes),
    )


def again(*arrays: Array | None) -> tuple[Any, ...]:
    """The same arrays, for one more reduction over them.

    XLA:CPU hands a sum to a library that computes what is summed on the way, unless something else
    needs it as well: then x - mean, or x in float32, is written to memory first. Behind a barrier it
    does not see that it is the same. Elsewhere it is to see it: there one pass makes several sums.
    """
    return jax.lax.platform_dependent(*arrays, cpu=_behind_barriers, default=_as_they_are)


def _behind_barriers(*arrays):
    return jax.tree.map(jax.lax.optimization_barrier, arrays)


def _as_they_are(*arrays):
    return arrays


def squared(d: Array) -> Array:
    """|d|^2, real for complex d."""
    if jnp.iscomplexobj(d):
        return jnp.square(d.real) + jnp.square(d.imag)
    return jnp.square(d)


def safe_divide(total: Array, count: Array) -> Array:
    """total / count, and 0 for an empty channel (whose total is 0)."""
    return total / jnp.where(count > 0, count, 1).astype(total.dtype)


def weighted(weights: Array | None, d: Array) -> Array:
    """w * d, and d where there are no weights."""
    return d if weights is None else weights.astype(d.dtype) * d


def nan_unless_finite(v: Array) -> Array:
    """NaN for inf too: what overflowed is to be seen, not normalized to 0."""
    # Not a literal NaN, which would trip jax.debug_nans where there is none.
    return jnp.where(jnp.isfinite(v), v, v - v)


def _one_pass_if_well_conditioned(x, weights, count, axes: Axes):
    mean, var = _about(x, weights, count, None, axes, _behind_barriers)

    def about_the_mean():
        moments = _corrected(x, weights, count, mean, axes, _behind_barriers)
        return _repeated_values_if_any(x, weights, moments, axes)

    return jax.lax.cond(
        jnp.all((jnp.abs(mean) <= jnp.sqrt(_WELL_CONDITIONED * var)) & jnp.isfinite(var)),
        lambda: (mean, jnp.zeros_like(mean), var),
        about_the_mean,
    )


def _two_passes(x, weights, count, axes: Axes):
    x = _samples(x, weights)
    mean = safe_divide(jnp.sum(weighted(weights, x), axes), count)
    if weights is not None:
        return _repeated_values(x, weights, _corrected(x, weights, count, mean, axes), axes)
    # One of the samples, if it is as near the mean as the rounded mean is, serves as well as a shift,
    # and is what makes one repeated value come out exactly. Found as a sum, because over a sharded
    # array sums travel together and a slice would be a collective of its own.
    first = jnp.sum(x * _first_only(x, axes), axes)
    near = jnp.abs(first - mean) <= _ROUNDINGS * jnp.finfo(count.dtype).eps * jnp.abs(mean)
    return _corrected(x, weights, count, jnp.where(near, first, mean), axes)


def _first_only(x, axes: Axes):
    """1 at index 0 of all the reduced axes, 0 elsewhere; of the shape of x."""
    first = (jax.lax.broadcasted_iota(jnp.int32, x.shape, a) == 0 for a in axes)
    return functools.reduce(jnp.logical_and, first, jnp.ones(x.shape, bool)).astype(x.dtype)


def _corrected(x, weights, count, estimate, axes: Axes, apart=_as_they_are):
    """Sums about an estimate of the mean: what they add to it is small, and kept as its remainder."""
    shift = jnp.where(jnp.isfinite(estimate), estimate, 0)
    offset, var = _about(x, weights, count, shift, axes, apart)
    mean = shift + offset
    return mean, (shift - mean) + offset, var


def _about(x, weights, count, shift: Array | None, axes: Axes, apart):
    """E[x - shift] and the variance, from sums of x - shift and its square; None shifts by 0.

    `apart` keeps the two sums apart, or does not: see `again`.
    """
    d = _deviation(x, weights, shift, axes)
    offset = safe_divide(jnp.sum(weighted(weights, d), axes), count)
    # A select, not arithmetic: left bare, XLA recomputes the division inside each consumer and may
    # contract it with the consumer's addition, so that two consumers see two different means.
    offset = nan_unless_finite(offset)
    x, weights, shift = apart(x, weights, shift)
    d = _deviation(x, weights, shift, axes)
    var = safe_divide(jnp.sum(weighted(weights, squared(d)), axes), count) - squared(offset)
    return offset, nan_unless_finite(jnp.where(var < 0, 0, var))


def _deviation(x, weights, shift: Array | None, axes: Axes):
    x = _samples(x, weights)
    return x if shift is None else x - jax.lax.expand_dims(shift, axes)


def _samples(x, weights):
    """x in the dtype of the arithmetic, 0 where the weight is 0."""
    x = x.astype(_dtypes.promote(x.dtype))
    return x if weights is None else jnp.where(weights > 0, x, 0)


def _repeated_values_if_any(x, weights, moments, axes: Axes):
    mean, _, var = moments
    rounding = _ROUNDINGS * jnp.finfo(var.dtype).eps
    return jax.lax.cond(
        jnp.any(var <= rounding**2 * squared(mean)),
        lambda: _repeated_values(x, weights, moments, axes),
        lambda: moments,
    )


def _repeated_values(x, weights, moments, axes: Axes):
    """The moments, exact where all samples of a channel are one value: that value, 0 and 0."""
    mean, remainder, var = moments
    low, high = _extremes(_samples(x, weights), weights, axes)
    repeated = (low == high) & jnp.isfinite(low)
    return (
        jnp.where(repeated, low, mean),
        jnp.where(repeated, 0, remainder),
        jnp.where(repeated, 0, var),
    )


def _extremes(x, weights, axes: Axes):
    """Smallest and largest sample, those of weight 0 left out; of a complex x, by each of its parts."""
    if jnp.iscomplexobj(x):
        real, imag = _extremes(x.real, weights, axes), _extremes(x.imag, weights, axes)
        return tuple(map(jax.lax.complex, real, imag))
    present = None if weights is None else weights > 0
    largest = functools.partial(jnp.max, axis=axes, initial=-jnp.inf, where=present)
    # Two maxima rather than a minimum and a maximum: over a sharded array they travel together.
    return -largest(-x), largest(x)
