"""The batch norm layers of a model, jbn's and Flax's, with another norm than they have."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

from flax import linen as nn
from flax import nnx

from jbn import linen as jbn_linen
from jbn import nnx as jbn_nnx
from jbn._norm import Norm, plain
from jbn.variants.weighted_inference import WeightedInference

Change = Callable[[Norm], Norm]
_CALLS = [inspect.unwrap(layer.__call__) for layer in (nn.BatchNorm, jbn_linen.BatchNorm)]


def innermost(norm: Norm, change: Change) -> Norm:
    """A norm of norms with the innermost one changed; weighted inference is one with what it holds."""
    inner = getattr(norm, "norm", None)
    if isinstance(inner, Norm) and not isinstance(norm, WeightedInference):
        changes: dict[str, Any] = {"norm": innermost(inner, change)}
        return dataclasses.replace(norm, **changes)
    return change(norm)


def interceptor(change: Change, **fields: Any) -> Callable[..., Any]:
    """For `nn.intercept_methods`: each layer is called as jbn's with a changed norm, and fields.

    It has the layer's scope, and so its variables. Subclasses are themselves, but for their call of the
    layer that they derive from.
    """

    def intercept(next_fun, args, kwargs, context):
        layer = context.module
        called = getattr(context.orig_method, "func", None)
        if called not in _CALLS or any(layer is ours for ours in replaced):
            return next_fun(*args, **kwargs)
        names = [f.name for f in dataclasses.fields(jbn_linen.BatchNorm) if hasattr(layer, f.name)]
        given = {name: getattr(layer, name) for name in names}
        ours = {**given, "parent": layer.scope, "norm": change(given.get("norm", plain)), **fields}
        replaced.append(jbn_linen.BatchNorm(**ours))
        if "use_running_average" in fields:
            args, kwargs = args[:1], {n: v for n, v in kwargs.items() if n != "use_running_average"}
        try:
            return replaced[-1](*args, **kwargs)
        finally:
            replaced.pop()

    replaced = []
    return intercept


def with_norms(model: nnx.Module, change: Change) -> tuple[nnx.Module, dict[Any, jbn_nnx.BatchNorm]]:
    """A copy of an NNX model in which the layers have changed norms, and these layers by their path.

    The variables are those of the model. Of Flax's own, subclasses stay as they are.
    """
    layers = {}

    def visit(path, node):
        if type(node) is nnx.BatchNorm:
            node = _ours(node)
        if isinstance(node, jbn_nnx.BatchNorm):
            node.norm = change(node.norm)
            layers[path] = node
        return node

    return nnx.recursive_map(visit, model), layers


def _ours(layer):
    names = inspect.signature(jbn_nnx.BatchNorm.__init__).parameters
    given = {name: getattr(layer, name) for name in names if hasattr(layer, name)}
    ours = jbn_nnx.BatchNorm(**given, rngs=nnx.Rngs(0))
    for name in ("scale", "bias", "mean", "var"):
        setattr(ours, name, getattr(layer, name))
    return ours
