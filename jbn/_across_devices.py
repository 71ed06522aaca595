"""The moments of all devices' samples, from each device's own (Chan et al. 1979)."""

import jax.numpy as jnp

from jbn import _collectives
from jbn._masking import squared
from jbn._typing import Array
from jbn.ops.local_moments import divide, finite, nan_unless_finite
from jbn.ops.reduction import Reduction

# A device's mean that near the mean of means, in roundings, is as good an anchor.
_ROUNDINGS = 8


def merged(
    reduction: Reduction, mean: Array, remainder: Array, var: Array, count: Array
) -> tuple[Array, Array, Array, Array]:
    """Mean, remainder, variance and count over the devices of `reduction.axis_name`.

    Two all-reduces. The first finds an anchor close to the global mean; the second sums the offsets
    from it and the squared deviations, which loses nothing however large the mean is.
    """
    axis_name, groups = reduction.axis_name, reduction.groups
    assert axis_name is not None
    chosen = _collectives.is_first(axis_name, groups) & (count > 0)
    mean, weight = jnp.where(count > 0, mean, 0), count.astype(mean.dtype)
    total, summed, reference, referenced = _collectives.psum(
        (count, weight * mean, jnp.where(chosen, mean, 0), chosen.astype(count.dtype)),
        axis_name,
        groups,
    )
    anchor = divide(summed, total)
    # One device's own mean, passed on exactly, serves as well as the rounded mean of means, and is
    # what makes one value repeated on all devices come out as exactly that value.
    near = jnp.abs(reference - anchor) <= _ROUNDINGS * jnp.finfo(count.dtype).eps * jnp.abs(anchor)
    anchor = finite(jnp.where(near & (referenced > 0), reference, anchor))
    offset = (mean - anchor) + remainder
    offset, var = _collectives.psum(
        (weight * offset, count * (var + squared(offset))), axis_name, groups
    )
    offset = nan_unless_finite(divide(offset, total))
    var = nan_unless_finite(jnp.maximum(divide(var, total) - squared(offset), 0))
    mean = anchor + offset
    return mean, (anchor - mean) + offset, var, total
