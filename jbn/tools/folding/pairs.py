"""Which batch norm of a model goes into which layer, and why another does not."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from flax import linen as nn
from flax.nnx.nn import dtypes as nnx_dtypes
from jax import lax

from jbn import _checks
from jbn._norm import plain
from jbn.tools.folding.dataflow import Dataflow, Tag
from jbn.tools.folding.foldable import LAYERS, NORMS, features, is_affine

# What is called by these names in place of Flax's own may be anything.
_PROMOTIONS = (None, nn.Dense.promote_dtype, nnx_dtypes.promote_dtype)
_ARITHMETIC = ("dot_general", "dot_general_cls", "conv_general_dilated", "conv_general_dilated_cls")


class Pair(NamedTuple):
    """A norm and the layer before it, by their paths, and the dtype of the norm's output."""

    norm: str
    layer: str
    dtype: Any


class Report(NamedTuple):
    """What was folded, and why the rest was not; `print` shows it in lines.

    Attributes:
        folded: the norms that are gone, each with the layer that it is in now.
        left: the reason why a norm is left, by its path.
    """

    folded: tuple[Pair, ...]
    left: Mapping[str, str]

    def __str__(self) -> str:
        lines = [f"folded {len(self.folded)} of {len(self.folded) + len(self.left)} batch norms"]
        lines += [f"  {pair.norm} into {pair.layer}" for pair in self.folded]
        lines += [f"  {norm} is left: {reason}" for norm, reason in self.left.items()]
        return "\n".join(lines)


class _LeftError(Exception):
    """Why a norm is left."""


def find_pairs(flow: Dataflow, modules: Mapping[str, Any]) -> Report:
    """The norms that can be folded into the layer before them, and why others cannot.

    Args:
        flow: of a program whose inputs are the model's variables and inputs, with tagged calls.
        modules: the layers and norms of the model, by path.
    """
    pairs, left = [], {}
    for path, module in modules.items():
        if isinstance(module, NORMS):
            try:
                pairs.append(_pair(flow, modules, path))
            except _LeftError as reason:
                left[path] = str(reason)
    return Report(tuple(pairs), left)


def _pair(flow, modules, path):
    norm = modules[path]
    if type(norm) not in NORMS:
        raise _LeftError(f"{type(norm).__name__} derives from a batch norm, and may do something else")
    kind = getattr(norm, "norm", plain)
    if not is_affine(kind):
        raise _LeftError(f"{kind!r} is not the map of plain batch norm")
    if flow.tags["training", path]:
        raise _LeftError("it normalizes by the batch here; call the model as in inference")
    x, y = _call(flow, path)
    for name in ("scale", "bias", "mean", "var"):
        _check_variable(flow, path, name, x, y)

    source = flow.makers.get(x.operand)
    if source is None:
        raise _LeftError("no layer is before it, but the input of the model")
    if not isinstance(source, Tag):
        raise _LeftError(f"`{source}` is before it, not a layer")
    layer = modules[source.path]
    if type(layer) not in LAYERS:
        raise _LeftError(f"{source.path} is before it, not a layer")
    called = _call(flow, source.path)
    if len(flow.uses[source.result]) > 1:
        raise _LeftError(f"the output of {source.path} is used elsewhere too")
    for name in ("kernel", "bias"):
        _check_variable(flow, source.path, name, *called)
    _check_axis(norm, layer, x.aval.ndim)
    _check_linear(source.path, layer)
    return Pair(path, source.path, y.aval.dtype)


def _call(flow, path):
    """The tags on what goes in and what comes out of a module that is called once."""
    ins, outs = (flow.tags[role, path] for role in ("in", "out"))
    if not ins or not outs:
        raise _LeftError(f"{path} is called in a loop, a branch or a transformation, or not at all")
    if len(ins) > 1:
        raise _LeftError(f"{path} is called {len(ins)} times")
    return ins[0], outs[0]


def _check_variable(flow, path, name, x, y):
    """A variable must be the model's as it is, and be used in the one call alone, from x to y."""
    for tag in flow.tags[name, path]:
        if tag.operand not in flow.inputs:
            raise _LeftError(f"the {name} of {path} is made of others before it is used")
        if flow.used_outside(tag.operand, x, y):
            raise _LeftError(f"the {name} of {path} is used elsewhere too")


def _check_axis(norm, layer, ndim):
    axes = _checks.feature_axes(norm.axis, ndim)
    if axes != tuple(range(ndim - len(axes), ndim)) or len(axes) > len(features(layer)):
        raise _LeftError(f"its axis, {norm.axis}, is not that of the layer's features")


def _check_linear(path, layer):
    """What takes the place of the product or of the convolution need not be linear in the kernel."""
    for name in _ARITHMETIC:
        if getattr(layer, name, None) not in (None, lax.dot_general, lax.conv_general_dilated):
            raise _LeftError(f"{path} has a `{name}` of its own")
    if getattr(layer, "promote_dtype", None) not in _PROMOTIONS:
        raise _LeftError(f"{path} has a `promote_dtype` of its own")
    if getattr(layer, "batch_dims", ()) or getattr(layer, "batch_axis", ()):
        raise _LeftError(f"{path} has batch dimensions")
