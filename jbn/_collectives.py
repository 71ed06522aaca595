"""Sums over named axes: any number of names, groups of indices, every transformation that names one."""

from typing import Any

import jax
import jax.numpy as jnp

from jbn._typing import AxisName, Groups


def require_axis(axis_name: AxisName, groups: Groups | None) -> None:
    """Fails, with what to do, where the named axis does not exist or the groups do not cover it."""
    try:
        size = jax.lax.axis_size(axis_name)
    except (NameError, TypeError, ValueError):
        raise NameError(
            f"`axis_name`={axis_name!r} is not bound here: statistics over a named axis need a "
            f"jax.shard_map, jax.pmap or jax.vmap(..., axis_name=...) with that name around the call. "
            f"Batch norm outside of one takes train=False (use_running_average=True in the Flax "
            f"layers), or axis_name=None for the statistics of the local batch"
        ) from None
    if groups is not None and sum(map(len, groups)) != size:
        raise ValueError(
            f"`axis_index_groups` must hold every index of {axis_name!r} exactly once: 0 to "
            f"{size - 1}, got {groups}"
        )


def psum(values: tuple[jax.Array, ...], axis_name: AxisName, groups: Groups | None) -> Any:
    """The sum of each array over the devices, or over this device's group, in one collective."""
    if any(jnp.iscomplexobj(v) for v in values):
        parts = [p for v in values for p in ((v.real, v.imag) if jnp.iscomplexobj(v) else (v,))]
        summed = iter(psum(tuple(parts), axis_name, groups))
        return tuple(
            jax.lax.complex(next(summed), next(summed)) if jnp.iscomplexobj(v) else next(summed)
            for v in values
        )
    stacked = jnp.stack(values)
    if groups is None:
        return tuple(jax.lax.psum(stacked, axis_name))
    # JAX's own groups raise NotImplementedError under vmap and checked shard_map. One row per group,
    # each device adding to its own, costs as many bytes as there are groups and works everywhere.
    group_of = [0] * sum(map(len, groups))
    for row, group in enumerate(groups):
        for index in group:
            group_of[index] = row
    mine = jnp.asarray(group_of)[jax.lax.axis_index(axis_name)]
    one_hot = jnp.arange(len(groups)) == mine
    rows = jnp.where(jax.lax.expand_dims(one_hot, range(1, stacked.ndim + 1)), stacked[None], 0)
    return tuple(jax.lax.psum(rows, axis_name)[mine])


def is_first(axis_name: AxisName, groups: Groups | None) -> jax.Array:
    """Whether this device is the first of the axis, or of its group."""
    index = jax.lax.axis_index(axis_name)
    firsts = (0,) if groups is None else tuple(group[0] for group in groups)
    return jnp.any(jnp.asarray(firsts, index.dtype) == index)
