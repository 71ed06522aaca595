"""Sums over named axes: any number of names, groups of indices, every transformation that names one."""

from typing import Any

import jax
import jax.numpy as jnp

from jbn._typing import AxisName, Groups


def require_axis(axis_name: AxisName, groups: Groups | None) -> None:
    """Fails, with what to do, where the named axis does not exist or the groups do not cover it."""
    try:
        devices = size(axis_name)
    except (NameError, TypeError, ValueError):
        raise NameError(
            f"`axis_name`={axis_name!r} is not bound here: statistics over a named axis need a "
            f"jax.shard_map, jax.pmap or jax.vmap(..., axis_name=...) with that name around the call. "
            f"Batch norm outside of one takes train=False (use_running_average=True in the Flax "
            f"layers), or axis_name=None for the statistics of the local batch"
        ) from None
    if groups is not None and sum(map(len, groups)) != devices:
        raise ValueError(
            f"`axis_index_groups` must hold every index of {axis_name!r} exactly once: 0 to "
            f"{devices - 1}, got {groups}"
        )


def size(axis_name: AxisName) -> int:
    """How many devices there are along an axis, or along several together."""
    return jax.lax.axis_size(axis_name)


def psum(values: tuple[jax.Array, ...], axis_name: AxisName, groups: Groups | None) -> Any:
    """The sum of each array over the devices, or over this device's group, in one collective."""
    if any(jnp.iscomplexobj(v) for v in values):
        return _by_parts(psum, values, axis_name, groups)
    stacked = jnp.stack(values)
    if groups is None:
        return tuple(jax.lax.psum(stacked, axis_name))
    # JAX's own groups raise NotImplementedError under vmap and checked shard_map. One row per group,
    # each device adding to its own, costs as many bytes as there are groups and works everywhere.
    mine = _group(axis_name, groups)
    return tuple(_rows(stacked, mine, len(groups), axis_name)[mine])


def gathered(values: tuple[jax.Array, ...], axis_name: AxisName, groups: Groups | None) -> Any:
    """Each array of every device along a new first axis, in one collective.

    Zeros for the devices of other groups. A sum, so that all devices are known to have the same.
    """
    if any(jnp.iscomplexobj(v) for v in values):
        return _by_parts(gathered, values, axis_name, groups)
    devices = size(axis_name)
    rows = _rows(jnp.stack(values), jax.lax.axis_index(axis_name), devices, axis_name)
    if groups is not None:
        of_mine = _group_of(groups) == _group(axis_name, groups)
        rows = jnp.where(jax.lax.expand_dims(of_mine, range(1, rows.ndim)), rows, 0)
    return tuple(jnp.moveaxis(rows, 1, 0))


def is_first(index: jax.Array, groups: Groups | None) -> jax.Array:
    """Which devices, by their indices, are the first of the axis, or of their group."""
    firsts = (0,) if groups is None else tuple(group[0] for group in groups)
    return jnp.any(jnp.asarray(firsts, index.dtype)[None] == index[:, None], axis=1)


def _by_parts(collective, values, axis_name, groups):
    """A collective of real and imaginary parts."""
    parts = [p for v in values for p in ((v.real, v.imag) if jnp.iscomplexobj(v) else (v,))]
    done = iter(collective(tuple(parts), axis_name, groups))
    return tuple(
        jax.lax.complex(next(done), next(done)) if jnp.iscomplexobj(v) else next(done) for v in values
    )


def _rows(v, mine, rows, axis_name):
    """The sum over the devices of rows of zeros, in which each adds v to one."""
    one_hot = jnp.arange(rows, dtype=mine.dtype) == mine
    one_hot = jax.lax.expand_dims(one_hot, range(1, v.ndim + 1))
    return jax.lax.psum(jnp.where(one_hot, v[None], 0), axis_name)


def _group_of(groups):
    """The number of the group of each device."""
    number = [0] * sum(map(len, groups))
    for row, group in enumerate(groups):
        for index in group:
            number[index] = row
    return jnp.asarray(number)


def _group(axis_name, groups):
    """The number of this device's group."""
    return _group_of(groups)[jax.lax.axis_index(axis_name)]
