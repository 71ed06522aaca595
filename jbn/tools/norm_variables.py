"""The batch norm layers of a model, found by structure: who has a running mean and variance."""

from typing import Any

import jax
from flax import nnx

Path = tuple[str, ...]

STATISTICS = ("mean", "var")
AFFINE = ("scale", "bias")


def names(key_path: Any) -> Path:
    """The names along a path of `jax.tree_util`, without the "value" that holds an NNX variable."""
    path = tuple(jax.tree_util.keystr((key,), simple=True) for key in key_path)
    return path[:-1] if path[-1:] == ("value",) else path


def as_tree(variables: Any) -> Any:
    """The state of an NNX module; any other tree as it is."""
    return nnx.state(variables) if isinstance(variables, nnx.Module) else variables


def is_variable(node: Any) -> bool:
    """Whether this is a variable of NNX."""
    return isinstance(node, nnx.Variable)


def params_path(layer: Path) -> Path:
    """Where the scale and bias of a layer are that has its statistics here."""
    return tuple("params" if name == "batch_stats" else name for name in layer)


def norm_layers(variables: Any) -> dict[Path, dict[str, Any]]:
    """The layers with a "mean" and a "var" side by side, by the path to these.

    Args:
        variables: Linen's variables, an NNX module or its state, or any tree of such names, such as a
            checkpoint. "mean" and "var" are statistics unless "params" is on their path or, in NNX,
            they are no `nnx.BatchStat`.

    Returns:
        For each layer "mean", "var" and, where it has them, "scale" and "bias": those at the same path,
        "params" for "batch_stats".
    """
    found: dict[Path, dict[str, Any]] = {}
    for key_path, leaf in jax.tree.leaves_with_path(as_tree(variables), is_leaf=is_variable):
        *layer, name = names(key_path) or ("",)
        if name in STATISTICS and not _may_be_statistic(layer, leaf):
            continue
        value = leaf.get_value() if is_variable(leaf) else leaf
        found.setdefault(tuple(layer), {})[name] = value
    layers = {}
    for path, own in found.items():
        if all(name in own for name in STATISTICS):
            arrays = {**found.get(params_path(path), {}), **own}
            layers[path] = {name: arrays[name] for name in (*STATISTICS, *AFFINE) if name in arrays}
    return layers


def _may_be_statistic(layer, leaf):
    return isinstance(leaf, nnx.BatchStat) if is_variable(leaf) else "params" not in layer
