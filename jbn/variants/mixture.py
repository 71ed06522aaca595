"""The moments of several populations taken together: the law of total variance."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jbn._masking import squared
from jbn._statistics import Moments
from jbn._typing import Array
from jbn.ops.local_moments import divide, finite, nan_unless_finite


def pooled(
    members: Moments, total: Callable[..., Sequence[Array]], back: Callable[[Array], Array]
) -> Moments:
    """The moments of the union of populations, differentiable.

        count = sum(n_i)
        mean  = sum(n_i * mean_i) / count
        var   = sum(n_i * (var_i + |mean_i - mean|^2)) / count

    summed about a first guess of the mean, which loses nothing however large the mean is.

    Args:
        members: the moments of each, `count` being n_i.
        total: sums arrays of the shape of `members.mean` over those that belong together.
        back: takes such a sum to each of its members.
    """
    mean, n = jnp.asarray(members.mean), jnp.asarray(members.count)
    n_i = n.astype(mean.dtype)
    count, guess = total(n, n_i * mean)
    # Of a guess there is no derivative: what is taken off here is added again below.
    anchor = jax.lax.stop_gradient(finite(divide(guess, count)))
    offset = mean - back(anchor)
    if members.remainder is not None:
        offset = offset + members.remainder
    offset = jnp.where(n > 0, offset, 0)
    first, second = total(n_i * offset, n * (members.var + squared(offset)))
    first = nan_unless_finite(divide(first, count))
    var = nan_unless_finite(jnp.maximum(divide(second, count) - squared(first), 0))
    mean = anchor + first
    return Moments(mean, var, count, (anchor - mean) + first)


def mixed(m: Moments, other: Moments, weight: ArrayLike) -> Moments:
    """The moments of a value that is drawn from the other population with a probability.

        mean = (1 - weight) * mean + weight * other.mean
        var  = (1 - weight) * var + weight * other.var + weight * (1 - weight) * |other.mean - mean|^2

    Exactly those of `m`, whose count it has, where the weight is 0, and of `other` where it is 1. Both
    have remainders.
    """
    mean, lost = jnp.asarray(m.mean), jnp.asarray(m.remainder)
    to, lost_there = jnp.asarray(other.mean), jnp.asarray(other.remainder)
    distance = (to - mean) + (lost_there - lost)
    weight = jnp.asarray(weight)
    # From the nearer of the two, and of that no digit is lost.
    here = weight <= 0.5
    step = jnp.where(here, weight, weight - 1).astype(distance.dtype) * distance
    start = jnp.where(here, mean, to)
    moved = start + step
    remainder = ((start - moved) + step) + jnp.where(here, lost, lost_there)
    var = (1 - weight) * m.var + weight * other.var + weight * (1 - weight) * squared(distance)
    return Moments(moved, var, m.count, remainder)
