"""Folding in a model of flax.nnx: a copy, whose folded norms do nothing any more."""

import functools
from typing import Any, NamedTuple

import jax
from flax import nnx

import jbn.nnx
from jbn.tools.folding.dataflow import traced
from jbn.tools.folding.foldable import LAYERS, NORMS, folded, require_inference, tagged_call
from jbn.tools.folding.pairs import Report, find_pairs


class FoldedNNX(NamedTuple):
    """An NNX model without the norms that were folded.

    Attributes:
        model: a copy, in evaluation mode.
        report: what was folded and what was left.
    """

    model: Any
    report: Report


class FoldedNorm(nnx.Module):
    """What a norm is that has been folded: `x`, in the dtype that the norm gave.

    Still of the class of the norm, for those who ask, with its settings, and without its variables.
    """

    dtype_of_output: Any

    def __call__(self, x: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        """`x`; in training an error."""
        require_inference(self, (x, *args), kwargs)
        return x.astype(self.dtype_of_output)


class _OfFlax(FoldedNorm, nnx.BatchNorm):
    pass


class _OfJbn(FoldedNorm, jbn.nnx.BatchNorm):
    pass


def fold_nnx(model: nnx.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> FoldedNNX:
    """See `jbn.tools.fold`."""
    model = nnx.clone(model)
    model.eval()
    modules = _modules(model)
    report = find_pairs(_traced(model, inputs, kwargs), modules)
    for pair in report.folded:
        layer, norm = modules[pair.layer], modules[pair.norm]
        params, batch_stats = _arrays(norm, "scale", "bias"), _arrays(norm, "mean", "var")
        bias = None if layer.bias is None else layer.bias[...]
        kernel, bias = folded(layer, norm, layer.kernel[...], bias, params, batch_stats)
        layer.kernel.set_value(kernel)
        if layer.bias is None:
            layer.bias, layer.use_bias = nnx.Param(bias), True
        else:
            layer.bias.set_value(bias)
        _empty(norm, pair.dtype)
    return FoldedNNX(model, report)


def _empty(norm: Any, dtype: Any) -> None:
    for name, value in vars(norm).copy().items():
        if isinstance(value, nnx.Variable):
            setattr(norm, name, nnx.data(None))
    norm.__class__ = {nnx.BatchNorm: _OfFlax, jbn.nnx.BatchNorm: _OfJbn}[type(norm)]
    norm.dtype_of_output = dtype


def _joined(path):
    return "/".join(map(str, path)) or "the model"


def _modules(model: nnx.Module) -> dict[str, Any]:
    """The layers and norms of a model, by path."""
    return {
        _joined(path): module
        for path, module in nnx.iter_modules(model)
        if type(module) in LAYERS or (isinstance(module, NORMS) and not isinstance(module, FoldedNorm))
    }


def _arrays(module, *names):
    variables = {name: getattr(module, name, None) for name in names}
    return {name: variable[...] for name, variable in variables.items() if variable is not None}


def _traced(model, inputs, kwargs):
    """The program of a model, with the calls of its layers and norms tagged."""
    model = nnx.clone(model)
    for path, module in _modules(model).items():
        if type(module) in (*LAYERS, *NORMS):
            module.__class__ = _tagged(type(module))
            module.path_of_fold = path
    structure, state = nnx.split(model)

    def run(state, *inputs):
        return nnx.merge(structure, state)(*inputs, **kwargs)

    return traced(run, state, inputs)


@functools.cache
def _tagged(cls):
    """The class with tags on its calls; an instance can become one of it, and be split and merged."""

    def call(self, *args, **kwargs):
        own = _arrays(self, "kernel", "bias", "scale", "mean", "var")
        inner = functools.partial(cls.__call__, self)
        return tagged_call(self, self.path_of_fold, own, inner, args, kwargs)

    return type(f"Tagged{cls.__name__}", (cls,), {"__call__": call, "__slots__": ()})
