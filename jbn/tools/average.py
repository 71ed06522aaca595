"""Running statistics of devices that trained without synchronization, merged before evaluation."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jbn import _checks, _collectives, _dtypes
from jbn._masking import squared
from jbn._typing import AxisIndexGroups, AxisName


def average_stats(
    batch_stats: Any,
    axis_name: AxisName,
    *,
    axis_index_groups: AxisIndexGroups | None = None,
) -> Any:
    """Running statistics of all devices taken together, the same on each of them.

        mean = E[mean_i]
        var  = E[var_i] + E[|mean_i - mean|^2]

    with E the plain mean over the devices: the mean and variance of samples drawn from all of them
    alike. Averaging the variances alone, as is often done, leaves out how far the devices' means lie
    apart. Any other statistic is averaged too; whole numbers, such as a count, are rounded down.

    Args:
        batch_stats: the statistics of one layer, or a pytree of mappings with those of many
            (Linen's `batch_stats` collection, NNX's state of `nnx.BatchStat`), each with "mean", "var".
        axis_name: name, or names, of the mapped axes; call it inside `jax.shard_map`, `jax.pmap` or
            `jax.vmap`.
        axis_index_groups: as in `jbn.moments`.

    Returns:
        A pytree like `batch_stats`.

    Raises:
        NameError: `axis_name` is not bound.
        ValueError: `axis_name` is None, `axis_index_groups` does not fit the axis, or a layer has a
            mean and no variance or the other way round.

    Example:
        >>> import jax, jax.numpy as jnp, jbn
        >>> stats = {"mean": jnp.array([[0.], [2.]]), "var": jnp.array([[1.], [3.]])}
        >>> merged = jax.vmap(lambda s: jbn.tools.average_stats(s, "i"), axis_name="i")(stats)
        >>> print(merged["mean"][0], merged["var"][0])
        [1.] [3.]
    """
    axis_name = _checks.axis_names(axis_name)
    if axis_name is None:
        raise ValueError("`axis_name` must name the axis of the devices to average over, got None")
    groups = _checks.index_groups(axis_index_groups, axis_name)
    _collectives.require_axis(axis_name, groups)

    def average(value):
        value = jnp.asarray(value)
        if not jnp.issubdtype(value.dtype, jnp.inexact):
            total, count = _collectives.psum((value, jnp.ones_like(value)), axis_name, groups)
            return total // count
        wide = value.astype(_dtypes.promote(value.dtype))
        total, count = _collectives.psum((wide, jnp.ones_like(wide)), axis_name, groups)
        return (total / count).astype(value.dtype)

    def is_layer(node):
        if not isinstance(node, Mapping) or not (found := {"mean", "var"} & set(node)):
            return False
        if len(found) == 1:
            raise ValueError(f"`batch_stats` must hold 'mean' and 'var' of a layer, got {sorted(node)}")
        return True

    def merge(node):
        if not is_layer(node):
            return average(node)
        mean = jax.tree.map(average, node["mean"])
        spread = jax.tree.map(lambda local, merged: squared(local - merged), node["mean"], mean)
        leaves, treedef = jax.tree.flatten(node["var"])
        total = [v + s.astype(v.dtype) for v, s in zip(leaves, jax.tree.leaves(spread), strict=True)]
        var = jax.tree.map(average, jax.tree.unflatten(treedef, total))
        others = {k: jax.tree.map(average, v) for k, v in node.items() if k not in ("mean", "var")}
        return type(node)({**others, "mean": mean, "var": var})

    return jax.tree.map(merge, batch_stats, is_leaf=is_layer)
