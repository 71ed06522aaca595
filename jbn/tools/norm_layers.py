"""The batch norm layers of a model, jbn's and Flax's, with another norm than they have."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
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


def linen_layer(layer: nn.Module, **changes: Any) -> jbn_linen.BatchNorm:
    """A layer of jbn with the fields and the variables of one of Flax or jbn, but for the changes."""
    names = [field.name for field in dataclasses.fields(jbn_linen.BatchNorm) if field.name != "name"]
    given = {name: getattr(layer, name) for name in names if hasattr(layer, name)}
    return jbn_linen.BatchNorm(**{**given, "parent": layer.scope, **changes})


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
        norm = change(getattr(layer, "norm", plain))
        replaced.append(linen_layer(layer, norm=norm, **fields))
        if "use_running_average" in fields:
            args, kwargs = args[:1], {n: v for n, v in kwargs.items() if n != "use_running_average"}
        try:
            return replaced[-1](*args, **kwargs)
        finally:
            replaced.pop()

    replaced = []
    return intercept


class _OfBoth(jbn_nnx.BatchNorm, nnx.BatchNorm):
    """In the place of a layer of Flax: a model that asks for its class goes the way that it went."""


def with_norms(model: nnx.Module, change: Change) -> tuple[nnx.Module, dict[Any, jbn_nnx.BatchNorm]]:
    """A copy of an NNX model in which the layers have changed norms, and these layers by their path.

    The variables are those of the model. Of Flax's own, subclasses stay as they are.
    """
    layers = {}

    def visit(path, node):
        if type(node) is nnx.BatchNorm:
            node = nnx_layer("/".join(map(str, path)), node, plain)
            node.__class__ = _OfBoth
        if isinstance(node, jbn_nnx.BatchNorm):
            node.norm = change(node.norm)
            layers[path] = node
        return node

    return nnx.recursive_map(visit, model), layers


def nnx_layer(path: str, layer: nnx.BatchNorm, norm: Norm) -> jbn_nnx.BatchNorm:
    """A layer of jbn with the arguments and the Variables of one of Flax; `path` is for the error.

    What else somebody has set on the layer is there too.
    """
    arguments = {
        name: getattr(layer, name)
        for name in inspect.signature(nnx.BatchNorm.__init__).parameters
        if hasattr(layer, name)
    }
    new = jbn_nnx.BatchNorm(**arguments, norm=norm, rngs=nnx.Rngs(0))
    of_one_layer = (layer.num_features,)
    for name in ("scale", "bias", "mean", "var"):
        variable, fresh = getattr(layer, name), getattr(new, name, None)
        if variable is None:
            continue
        if fresh is not None and fresh.shape == of_one_layer:
            setattr(new, name, variable)
        elif isinstance(fresh, nnx.BatchStat) and fresh.shape[1:] == variable.shape == of_one_layer:
            setattr(new, name, variable.replace(_repeated(variable.get_value(), fresh.shape)))
        else:
            raise ValueError(
                f"`norm` must have a '{name}' like that of {path}, of shape {variable.shape}, got "
                f"{'none' if fresh is None else fresh.shape} from {norm!r}"
            )
    for name, value in vars(layer).items():
        if not hasattr(new, name):
            setattr(new, name, value)
    return new


def _repeated(value, shape):
    if isinstance(value, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(shape, value.dtype)
    return jnp.broadcast_to(value, shape)
