"""Mean and variance of one device's values: what is summed, about which shift, how often.

    offset = E[x - shift];  mean = shift + offset;  var = E[(x - shift)^2] - offset^2

loses nothing while `shift` is within a deviation or so of the mean. So which one? (Passes over x that
the program of a layer makes, of `python -m benchmarks programs`; the normalization itself makes two.)

- CPU: 0. A subtraction costs a tenth of the time of a sum there. Two reads, one for each sum.
- TPU: a guess known beforehand, the running mean. Sums about it become part of the convolution before
  them, which sums about anything computed from x cannot: one read, and none behind a convolution.
- GPU: the mean of a sample of x, every 16th value or more. For a share f of the values it is at most
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
from jbn._masking import counted, weighted
from jbn._typing import Array
from jbn.ops.platform import choose
from jbn.ops.reduction import Reduction, is_small, known
from jbn.ops.rounded import rounded, rounded_for_sum

barrier = lax.optimization_barrier

# A value in so many, at least, is in the sample that a GPU takes its shift from.
_SAMPLE = 16
# The mean of a sample is known to so many roundings.
_ROUNDINGS = 16

# So often it sums at most. Each time the shift is nearer by all the digits of its dtype: three are
# enough if the first is no more than 1e14 deviations off. The end is for data that is not finite.
_MOST = 6


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
        real, imag = (_real_moments(reduction, barrier(v), weights, count, s) for v, s in parts)
        return lax.complex(real[0], imag[0]), lax.complex(real[1], imag[1]), real[2] + imag[2]
    return _real_moments(reduction, x, weights, count, shift)


def _real_moments(reduction, x, weights, count, shift):
    about = functools.partial(_about, reduction, x, weights, count)
    shift, enough = _first_shift(reduction, x, weights, count, shift)

    def far(offset, var):
        # Of the roots, which do not underflow.
        excess = lax.sub(lax.abs(offset), lax.sqrt(var))
        return lax.bitwise_not(lax.reduce_max(excess, tuple(range(excess.ndim))) <= 0)

    def another(state):
        times, _, offset, var = state
        wanted = (times < 1) | ((times < _MOST) & far(offset, var))
        if weights is None:
            return wanted
        # For the host not to have to wait for the answer.
        return choose(
            times,
            wanted,
            gpu=lambda times, wanted: (times < 3) | (wanted & False),
            default=lambda times, wanted: wanted,
        )

    def again(state):
        times, shift, offset, _ = state
        shift = finite(lax.add(shift, offset))
        return times + 1, shift, *about(shift, barrier(shift))

    def mean_and_variance(shift, offset, var):
        mean = lax.add(shift, offset)
        return mean, lax.add(lax.sub(shift, mean), offset), var

    def until_near(*state):
        return mean_and_variance(*lax.while_loop(another, again, state)[1:])

    def unless_enough(*state):
        # A TPU would copy x into a loop that it does not skip.
        more = lax.bitwise_and(another(state), lax.bitwise_not(enough))
        return lax.cond(more, until_near, lambda *state: mean_and_variance(*state[1:]), *state)

    def with_first_sums(then):
        return lambda shift: then(1, shift, *about(shift, shift))

    def all_in_the_loop(shift):
        zero = lax.full_like(shift, 0)
        return until_near(0, shift, zero, zero)

    # A small program is compiled longer than it runs.
    cpu = all_in_the_loop if is_small(x) else with_first_sums(until_near)
    return choose(shift, cpu=cpu, default=with_first_sums(unless_enough))


def _first_shift(reduction, x, weights, count, shift):
    """What to sum about first, and whether that is certainly enough."""
    # Made of x and the mask, to have their sharding and to vary over the devices that they vary over.
    zero = lax.full_like(lax.reduce_sum(lax.convert_element_type(x, count.dtype), reduction.axes), 0)
    if weights is not None:
        zero = lax.add(zero, lax.full_like(count, 0))
    if shift is None or jax.typeof(shift).sharding != jax.typeof(zero).sharding:
        shift = zero
    shift = lax.add(finite(shift.astype(zero.dtype)), zero)
    sample = None if weights is not None else _sample(reduction, x)

    def sampled(x, shift):
        if sample is None:
            return shift, False
        return lax.add(_sample_mean(reduction, x[sample]), zero), True

    return choose(
        x,
        shift,
        cpu=lambda x, shift: (lax.full_like(shift, 0), False),
        gpu=sampled,
        default=lambda x, shift: (shift, False),
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
    nowhere = remaining == _SAMPLE and any(sharded[axis] is not None for axis in reduction.axes)
    if nowhere or 0 in x.shape:
        return None
    return tuple(slice(None, None, steps.get(axis)) for axis in range(x.ndim))


def _sample_mean(reduction, sample):
    """The mean of a sample, or the first of it if that is as near as rounding lets one tell.

    That makes one value repeated in all of x come out as exactly that value.
    """
    sample = rounded(sample, _dtypes.promote(sample.dtype))
    # Of what is sharded over devices no first one can be taken; the largest will do.
    sharded = jax.typeof(sample).sharding.spec
    ends = (1 if a in reduction.axes and sharded[a] is None else n for a, n in enumerate(sample.shape))
    first = lax.reduce_max(lax.slice(sample, (0,) * sample.ndim, tuple(ends)), reduction.axes)
    total = lax.reduce_sum(sample, reduction.axes)
    mean = lax.div(total, lax.full_like(total, reduction.samples(sample.shape)))
    rounding = _ROUNDINGS * float(jnp.finfo(sample.dtype).eps)
    near = lax.le(lax.abs(lax.sub(mean, first)), lax.mul(lax.full_like(mean, rounding), lax.abs(mean)))
    return finite(lax.select(near, first, mean))


def _about(reduction, x, weights, count, shift, same):
    """E[x - shift] and the variance; `same` is the shift once more, for the second sum."""
    x = rounded_for_sum(x, count.dtype)

    def deviation(shift):
        return lax.sub(x, reduction.broadcast(shift, x.shape))

    if weights is None:
        d, d_again = deviation(shift), deviation(same)
    else:
        # XLA:CPU does not hand on a sum with a select in it.
        d = d_again = choose(counted(weights, deviation(shift)), cpu=barrier, default=lambda d: d)
    summed = weighted(weights, d), weighted(weights, lax.square(d_again))
    totals = reduction.compensated_sums(*summed) if is_small(x) else map(reduction.sum, summed)
    mean, mean_square = (divide(total, count) for total in totals)
    # A select, not arithmetic: left bare, XLA recomputes the division inside each consumer and may
    # contract it with the consumer's addition, so that two consumers see two different means.
    offset = nan_unless_finite(mean)
    var = lax.sub(mean_square, lax.square(offset))
    return offset, nan_unless_finite(lax.max(var, lax.full_like(var, 0)))


def divide(total: Array, count: Array) -> Array:
    """total / count, and 0 for a channel without samples (whose total is 0)."""
    some = lax.select(lax.gt(count, lax.full_like(count, 0)), count, lax.full_like(count, 1))
    return lax.div(total, lax.convert_element_type(some, total.dtype))


def finite(v: Array) -> Array:
    """v, and 0 where it is not finite."""
    return lax.select(is_finite(v), v, lax.full_like(v, 0))


def nan_unless_finite(v: Array) -> Array:
    """NaN for inf too: what overflowed is to be seen, not normalized to 0."""
    # Not a literal NaN, which would trip jax.debug_nans where there is none.
    return lax.select(is_finite(v), v, lax.sub(v, v))


def is_finite(v: Array) -> Array:
    """Where v is finite."""
    if jnp.iscomplexobj(v):
        return lax.is_finite(v.real) & lax.is_finite(v.imag)
    return lax.is_finite(v)
