"""The passes over the data in plain jnp, for XLA to fuse.

Two ways to the same numbers, chosen by the platform that the program is lowered for:

- On a CPU: one pass about a given shift, and a `lax.cond` that takes a second, corrected pass where
  any channel's mean lies further than a deviation from the shift. The predicate costs nothing there.
- Elsewhere: always the corrected pass, because a data-dependent branch may make the host wait for
  the device.
"""

import functools

import jax
import jax.numpy as jnp

Array = jax.Array
Axes = tuple[int, ...]

# The variance about a shift k loses (mean - k)^2 / var of its precision: at most half of it here.
_WELL_CONDITIONED = 1.0


def moments(
    x: Array, weights: Array | None, count: Array, shift: Array, axes: Axes
) -> tuple[Array, Array, Array]:
    """Weighted mean, its remainder and variance of `x` over `axes`; see `jbn.moments`.

    Args:
        x: float32 at least (or complex), finite where the weight is 0.
        weights: non-negative, of the rank of `x`, broadcasting against it; None for all ones.
        count: the sum of the weights per channel.
        shift: a value per channel near the mean, if one is known; 0 otherwise. Any finite value
            gives the same result.
        axes: the axes to reduce.
    """
    passes = functools.partial(_single_pass, axes=axes), functools.partial(_two_passes, axes=axes)
    return jax.lax.platform_dependent(x, weights, count, shift, cpu=passes[0], default=passes[1])


def squared(d: Array) -> Array:
    """|d|^2, real for complex d."""
    if jnp.iscomplexobj(d):
        return jnp.square(d.real) + jnp.square(d.imag)
    return jnp.square(d)


def safe_divide(total: Array, count: Array) -> Array:
    """total / count, and 0 for an empty channel (whose total is 0)."""
    return total / jnp.where(count > 0, count, 1)


def _single_pass(x, weights, count, shift, axes: Axes):
    offset, var = _about(x, weights, count, shift, axes)
    good = jnp.all(squared(offset) <= _WELL_CONDITIONED * var)
    return jax.lax.cond(
        good,
        lambda: _pair(shift, offset, var),
        lambda: _corrected(x, weights, count, shift + offset, axes),
    )


def _two_passes(x, weights, count, shift, axes: Axes):
    d = x - jax.lax.expand_dims(shift, axes)
    total = jnp.sum(d if weights is None else weights * d, axes)
    return _corrected(x, weights, count, shift + safe_divide(total, count), axes)


def _corrected(x, weights, count, estimate, axes: Axes):
    """Sums about an estimate of the mean, itself within rounding of it."""
    shift = _clip_to_range(x, weights, estimate, axes)
    shift = jnp.where(jnp.isfinite(shift), shift, 0)
    return _pair(shift, *_about(x, weights, count, shift, axes))


def _about(x, weights, count, shift, axes: Axes):
    """E[x - shift] and the variance, from sums of x - shift and its square."""
    d = x - jax.lax.expand_dims(shift, axes)
    first, second = d, squared(d)
    if weights is not None:
        first, second = weights * first, weights * second
    offset = safe_divide(jnp.sum(first, axes), count)
    # A select, not arithmetic: left bare, XLA recomputes the division inside each consumer and may
    # contract it with the consumer's addition, so that two consumers see two different means.
    offset = jnp.where(jnp.isfinite(offset), offset, jnp.nan)
    var = safe_divide(jnp.sum(second, axes), count) - squared(offset)
    return offset, jnp.where(var < 0, 0, var)


def _pair(shift, offset, var):
    """shift + offset as a rounded mean and what the rounding left out."""
    mean = shift + offset
    return mean, (shift - mean) + offset, var


def _clip_to_range(x, weights, value, axes: Axes):
    """`value` moved into [min(x), max(x)].

    A mean lies between the extremes and its rounded value may not. Moved back, the mean of one
    repeated value is exactly that value, and the deviations exactly 0.
    """
    if jnp.iscomplexobj(x):
        real = _clip_to_range(x.real, weights, value.real, axes)
        return jax.lax.complex(real, _clip_to_range(x.imag, weights, value.imag, axes))
    present = None if weights is None else weights > 0
    low = jnp.min(x, axes, initial=jnp.inf, where=present)
    high = jnp.max(x, axes, initial=-jnp.inf, where=present)
    return jnp.minimum(jnp.maximum(value, low), high)
