"""Mean and variance of one device's values: what is summed, about which shift, how often.

    offset = E[x - shift];  mean = shift + offset;  var = E[(x - shift)^2] - offset^2

loses nothing while `shift` is within a deviation or so of the mean. So which one? (Passes over x that
the program of a layer makes, of `python -m benchmarks programs`; the normalization itself makes two.)

- CPU: 0. A subtraction costs a tenth of the time of a sum there. Two reads, one for each sum.
- TPU: a guess known beforehand, the running mean. Sums about it become part of the convolution before
  them, which sums about anything computed from x cannot: one read, and none behind a convolution.
- GPU: the mean of a sample of x, every 32nd value or more. For a share f of the values it is at most
  sqrt(1 / f) deviations off, whatever the data. One read and a bit.

On a GPU that is all, since the host would have to wait for what is decided on the device. Elsewhere a
branch sums again about the new mean where any channel's was more than a deviation off: seldom on a TPU,
on a CPU where a mean exceeds its deviation.

Masks rule the sample out, as it may hold nothing that counts: there a GPU always sums three times.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from jbn import _dtypes
from jbn._masking import counted, squared, weighted
from jbn._typing import Array
from jbn.ops.platform import apart, choose
from jbn.ops.reduction import Reduction, known

# A value in so many, at least, is in the sample that a GPU takes its shift from.
_SAMPLE = 32
# Arrays up to this size are summed one value after the other on a CPU, and the error grows with it.
_SMALL = 8192

# Once about the mean, and once about what that gave: then the shift is the mean, rounded.
_MOST = 2


def local_moments(
    reduction: Reduction, x: Array, weights: Array | None, count: Array, shift: Array | None
) -> tuple[Array, Array, Array]:
    """Weighted mean, what rounding it left out, and variance.

    Args:
        reduction: over which axes.
        x: may be anything where the weight is 0.
        weights: boolean or non-negative, of the rank of `x`; None for all ones.
        count: the sum of the weights.
        shift: what may be known of the mean, or None.
    """
    if jnp.iscomplexobj(x):
        shifts = (None, None) if shift is None else (shift.real, shift.imag)
        parts = zip((x.real, x.imag), shifts, strict=True)
        real, imag = (_real_moments(reduction, *apart(v), weights, count, s) for v, s in parts)
        return lax.complex(real[0], imag[0]), lax.complex(real[1], imag[1]), real[2] + imag[2]
    return _real_moments(reduction, x, weights, count, shift)


def _real_moments(reduction, x, weights, count, shift):
    about = functools.partial(_about, reduction, x, weights, count)
    sample = _sample(reduction, x) if weights is None else None
    shift = _first_shift(reduction, x, count, sample, shift)
    offset, var = about(shift, shift)

    def far(offset, var):
        anywhere = jnp.any(~(lax.square(offset) <= var))
        # The host must not have to wait for the answer: always, or never.
        return choose(
            anywhere,
            gpu=lambda far: far & False if sample is not None else far | True,
            default=lambda far: far,
        )

    def again(state):
        times, shift, offset, _ = state
        shift = finite(shift + offset)
        return times + 1, shift, *about(shift, *apart(shift))

    def until_near(*state):
        # In a branch as well: a TPU copies what it takes into a loop.
        return lax.while_loop(lambda s: (s[0] < _MOST) & far(*s[2:]), again, (0, *state))[1:]

    shift, offset, var = lax.cond(
        far(offset, var), until_near, lambda *state: state, shift, offset, var
    )
    mean = shift + offset
    return mean, (shift - mean) + offset, var


def _first_shift(reduction, x, count, sample, shift):
    # Made of x, so that all have its sharding and vary over the devices that it varies over.
    zero = jnp.zeros_like(lax.reduce_sum(x.astype(count.dtype), reduction.axes))
    if shift is None or jax.typeof(shift).sharding != jax.typeof(zero).sharding:
        shift = zero
    shift = finite(shift.astype(zero.dtype)) + zero
    return choose(
        x,
        shift,
        cpu=lambda x, shift: jnp.zeros_like(shift),
        gpu=lambda x, shift: shift if sample is None else _sample_mean(reduction, x[sample]) + zero,
        default=lambda x, shift: shift,
    )


def _sample(reduction, x):
    """Slices that leave a sample of x, or None where there are none that leave it where it is.

    Along the inner axes before the first, as arrays are often sharded along that.
    """
    steps, remaining = {}, _SAMPLE
    sharded = jax.typeof(x).sharding.spec
    for axis in (*reduction.axes[1:], *reduction.axes[:1]):
        size = x.shape[axis]
        if sharded[axis] is None:
            steps[axis] = max(1, min(remaining, size)) if known(size) else remaining
            remaining = math.ceil(remaining / steps[axis])
    if remaining == _SAMPLE and any(sharded[axis] is not None for axis in reduction.axes):
        return None
    return tuple(slice(None, None, steps.get(axis)) for axis in range(x.ndim))


def _sample_mean(reduction, sample):
    """The mean of a sample, clamped to its range: of one repeated value it is that value."""
    axes = reduction.axes
    sample = sample.astype(_dtypes.promote(sample.dtype))
    mean = lax.reduce_sum(sample, axes) / reduction.samples(sample.shape)
    return finite(lax.clamp(lax.reduce_min(sample, axes), mean, lax.reduce_max(sample, axes)))


def _about(reduction, x, weights, count, shift, same):
    """E[x - shift] and the variance; `same` is the shift once more, for the second sum."""
    small = known(*x.shape) and math.prod(x.shape) <= _SMALL

    def deviation(x, shift):
        return x.astype(count.dtype) - reduction.expand(shift)

    def mean(v):
        first = divide(reduction.sum(weighted(weights, v)), count)
        if not small:
            return first
        # What is left is as likely negative as positive, and adds up to no large sum on the way.
        rest = weighted(weights, v - reduction.expand(first))
        return first + divide(reduction.sum(rest), count)

    if weights is None:
        d, d_again = deviation(x, shift), deviation(*apart(x), same)
    else:
        # XLA:CPU does not hand on a sum with a select in it.
        (d,) = apart(counted(weights, deviation(x, shift)))
        d_again = d
    # A select, not arithmetic: left bare, XLA recomputes the division inside each consumer and may
    # contract it with the consumer's addition, so that two consumers see two different means.
    offset = nan_unless_finite(mean(d))
    var = mean(squared(d_again)) - lax.square(offset)
    return offset, nan_unless_finite(jnp.maximum(var, 0))


def divide(total: Array, count: Array) -> Array:
    """total / count, and 0 for a channel without samples (whose total is 0)."""
    return total / jnp.where(count > 0, count, 1).astype(total.dtype)


def finite(v):
    return jnp.where(jnp.isfinite(v), v, 0)


def nan_unless_finite(v):
    """NaN for inf too: what overflowed is to be seen, not normalized to 0."""
    # Not a literal NaN, which would trip jax.debug_nans where there is none.
    return jnp.where(jnp.isfinite(v), v, v - v)
