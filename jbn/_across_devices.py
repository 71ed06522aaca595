"""The moments of all devices' samples, from each device's own (Chan et al. 1979)."""

import jax
import jax.numpy as jnp

from jbn import _collectives
from jbn._masking import squared
from jbn._typing import Array
from jbn.ops.local_moments import divide, finite, nan_unless_finite
from jbn.ops.reduction import Reduction

# A device's mean that near the mean of means, in roundings, is as good an anchor.
_ROUNDINGS = 8
# So many numbers are sent in little more time than one; under `vmap` each of so many devices has them.
_SENT_AT_ONCE = 2**17
_FEW_DEVICES = 32


def merged(
    reduction: Reduction, mean: Array, remainder: Array, var: Array, count: Array
) -> tuple[Array, Array, Array, Array]:
    """Mean, remainder, variance and count over the devices of `reduction.axis_name`.

    Two sums over the devices. The first finds an anchor close to the global mean; the second sums the
    offsets from it and the squared deviations, which loses nothing however large the mean is. Where
    every device can be told all of the others' moments, in one all-reduce, it makes both by itself.
    """
    axis_name, groups = reduction.axis_name, reduction.groups
    assert axis_name is not None
    values = mean, remainder, var, count
    devices = _collectives.size(axis_name)
    # One row of each, or one for each device.
    at_once = devices <= _FEW_DEVICES and devices * len(values) * count.size <= _SENT_AT_ONCE
    if at_once:
        mean, remainder, var, count = _collectives.gathered(values, axis_name, groups)
        index = jnp.arange(devices)
    else:
        mean, remainder, var, count = (v[None] for v in values)
        index = jax.lax.axis_index(axis_name)[None]
    first = jax.lax.expand_dims(_collectives.is_first(index, groups), range(1, count.ndim))

    def total_of(*values):
        totals = tuple(jnp.sum(v, axis=0) for v in values)
        return totals if at_once else _collectives.psum(totals, axis_name, groups)

    chosen = first & (count > 0)
    mean, weight = jnp.where(count > 0, mean, 0), count.astype(mean.dtype)
    total, summed, reference, referenced = total_of(
        count, weight * mean, jnp.where(chosen, mean, 0), chosen.astype(count.dtype)
    )
    anchor = divide(summed, total)
    # One device's own mean, passed on exactly, serves as well as the rounded mean of means, and is
    # what makes one value repeated on all devices come out as exactly that value.
    near = jnp.abs(reference - anchor) <= _ROUNDINGS * jnp.finfo(count.dtype).eps * jnp.abs(anchor)
    anchor = finite(jnp.where(near & (referenced > 0), reference, anchor))
    offset = (mean - anchor[None]) + remainder
    offset, var = total_of(weight * offset, count * (var + squared(offset)))
    offset = nan_unless_finite(divide(offset, total))
    var = nan_unless_finite(jnp.maximum(divide(var, total) - squared(offset), 0))
    mean = anchor + offset
    return mean, (anchor - mean) + offset, var, total
