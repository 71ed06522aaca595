"""The batch norm layers of a model, alone and against the statistics of data."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jbn.tools.inspection.layer_report import Limits, channelwise, layer_report
from jbn.tools.inspection.model_report import Report
from jbn.tools.norm_variables import STATISTICS, Path, names, norm_layers


def report(
    variables: Any,
    data_stats: Any = None,
    apply: Callable[[Any], Any] | None = None,
    *,
    epsilon: float = 1e-5,
    dead: float = 1e-3,
    drift: float = 0.5,
) -> Report:
    """What the batch norm layers of a model are like, and what is wrong with them.

    For each layer, found by its running "mean" and "var", it counts

        channels     of the layer, times the domains or steps that have statistics of their own
        dead         |scale| < dead: y is the bias, whatever x is
        collapsed    var < epsilon: epsilon, not the data, decides how large y is
        non-finite   NaN or inf in any of the arrays
        stale        mean 0 and var 1, as they were initialized

    and, with `data_stats`, compares m, v of the running statistics with m_d, v_d of the data:

        drift        the largest |m - m_d| / sqrt(v_d + epsilon)
        var ratio    the smallest and largest (v + epsilon) / (v_d + epsilon)
        effect       what of the layer's y changes where the running statistics take the place of the
                     data's: the root mean square change, by that of scale, over samples and channels

    and, with `apply`, says how much the model's output y changes by itself:

        output       |y - y_d| / |y - mean(y)|, y_d with the data's statistics in this layer alone

    Args:
        variables: Linen's variables, an NNX module or its state, or any tree with {"mean", "var"} and,
            at the same path or at that with "params" for "batch_stats", "scale" and "bias".
        data_stats: statistics of data, in a tree like those in `variables`, as a training step with
            `momentum=0`, or `jbn.tools.recalibrate`, returns them. None leaves the columns out, as do
            layers that are not in it.
        apply: `variables` -> the output in inference, whatever its tree; of a module if `variables` is
            one. Called once, and once for each layer. Needs `data_stats`.
        epsilon: that of the layers. Default 1e-5.
        dead: bound of |scale|. Default 1e-3.
        drift: more deviations than this, or another sqrt(var ratio) than 1 / (1 + drift) to 1 + drift,
            are a finding. Default 0.5.

    Returns:
        A `Report`: `str` is the table and the findings, `layers` its rows, `output_change` the last
        column with all layers changed together; `picture(path)` draws histograms.

    Raises:
        ValueError: no batch norm in `variables`; arrays of a layer that do not fit; layers in
            `data_stats` that `variables` does not have; `apply` without `data_stats`; a negative bound.

    Example:
        >>> import jax.numpy as jnp, jbn
        >>> params, batch_stats = jbn.init(4)
        >>> params["scale"] = jnp.array([1.0, 1.0, 0.0, 1.0])
        >>> found = jbn.tools.report({"params": {"norm": params}, "batch_stats": {"norm": batch_stats}})
        >>> found.layers[0].dead, found.layers[0].stale
        (1, 4)
        >>> print(found)    # doctest: +ELLIPSIS
        layer  channels  dead  collapsed  non-finite  stale
        norm          4     1          0           0      4
        <BLANKLINE>
        norm: the running statistics are the initial ones, mean 0 and variance 1
            carry `batch_stats` on from step to step, or compute the statistics over data
        norm: |scale| below 0.001, dead, in 1 of 4 channels
            y is the bias there: ...
    """
    limits = Limits(epsilon, dead, drift)
    if not epsilon > 0:
        raise ValueError(f"`epsilon` must be positive, got {epsilon}")
    for name, bound in {"dead": dead, "drift": drift}.items():
        if not bound >= 0:
            raise ValueError(f"`{name}` must not be negative, got {bound}")
    layers = norm_layers(variables)
    if not layers:
        raise ValueError(
            "no batch norm found: expected a 'mean' and a 'var' side by side, as in Linen's "
            "'batch_stats' or in an NNX module"
        )
    if apply is not None and data_stats is None:
        raise ValueError("`apply` needs `data_stats`, the statistics to put in the running ones' place")
    data = {} if data_stats is None else _matched(layers, data_stats)
    changes, all_changed = ({}, None) if apply is None else _output_changes(apply, variables, data)
    arrays = {path: channelwise(_name(path), own) for path, own in layers.items()}
    of_data = {path: channelwise(_name(path), {**layers[path], **own}) for path, own in data.items()}
    rows = [
        layer_report(_name(path), own, of_data.get(path), limits, changes.get(path))
        for path, own in arrays.items()
    ]
    named = {_name(path): own for path, own in arrays.items()}
    return Report(tuple(rows), all_changed, named, epsilon)


def _name(layer: Path) -> str:
    return "/".join(name for name in layer if name != "batch_stats") or "(root)"


def _matched(layers, data_stats):
    """The data's mean and variance, by the paths of the layers."""
    found = {_name(path): arrays for path, arrays in norm_layers(data_stats).items()}
    matched = {path: found.pop(_name(path)) for path in layers if _name(path) in found}
    if found or not matched:
        raise ValueError(
            f"`data_stats` must have layers of `variables`, {', '.join(map(_name, layers))}; got "
            f"{', '.join(found) or 'none'}"
        )
    for path, own in matched.items():
        for name in STATISTICS:
            wanted, got = np.shape(layers[path][name]), np.shape(own[name])
            if got != wanted:
                raise ValueError(
                    f"`data_stats` must have the shapes of the running statistics, {wanted} for "
                    f"`{name}` of {_name(path)}, got {got}"
                )
    return {path: {name: own[name] for name in STATISTICS} for path, own in matched.items()}


def _output_changes(apply, variables, data):
    """How much the output changes with the data's statistics in each layer, and in all of them."""

    def output(layers):
        leaves = jax.tree.leaves(apply(_replaced(variables, layers)))
        return np.concatenate([np.ravel(np.asarray(v, np.float64)) for v in leaves])

    running = output({})
    size = float(np.linalg.norm(running - running.mean()))

    def change(layers):
        moved = float(np.linalg.norm(output(layers) - running))
        return moved / size if size else math.inf if moved else 0.0

    return {path: change({path: own}) for path, own in data.items()}, change(data)


def _replaced(variables, layers):
    """A copy, with other statistics in these layers."""

    def leaf(key_path, value):
        *layer, name = names(key_path) or ("",)
        new = layers.get(tuple(layer), {}).get(name)
        if new is None:
            return value
        return (jnp if isinstance(value, jax.Array) else np).asarray(new, value.dtype)

    if not isinstance(variables, nnx.Module):
        return jax.tree.map_with_path(leaf, variables)
    graph, state = nnx.split(variables)
    return nnx.merge(graph, jax.tree.map_with_path(leaf, state))
