"""Folding in a model of flax.linen: its variables change, and an interceptor leaves the norms out."""

import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from flax import linen as nn
from flax.core import unfreeze
from flax.core.meta import unbox

from jbn.tools.compilation import intercepted
from jbn.tools.folding.dataflow import traced as traced_program
from jbn.tools.folding.foldable import LAYERS, NORMS, folded, require_inference, tagged_call
from jbn.tools.folding.pairs import Report, find_pairs


class FoldedLinen(NamedTuple):
    """A Linen model without the norms that were folded.

    Attributes:
        apply: what `model.apply` was.
        variables: for `apply` alone: the layers hold the norms, which are gone.
        report: what was folded and what was left.
    """

    apply: Callable[..., Any]
    variables: dict[str, Any]
    report: Report


def fold_linen(
    model: nn.Module, variables: Mapping[str, Any], inputs: tuple[Any, ...], kwargs: dict[str, Any]
) -> FoldedLinen:
    """See `jbn.tools.fold`."""
    variables = unbox(unfreeze(dict(variables)))
    modules, flow = _traced(model, variables, inputs, kwargs)
    report = find_pairs(flow, modules)
    dtypes, biased = {}, set()
    for pair in report.folded:
        layer, norm = modules[pair.layer], modules[pair.norm]
        own = functools.reduce(operator.getitem, layer.path, variables["params"])
        params, batch_stats = (_take(variables[name], norm.path) for name in ("params", "batch_stats"))
        if "bias" not in own:
            biased.add(layer.path)
        bias = own.get("bias")
        own["kernel"], own["bias"] = folded(layer, norm, own["kernel"], bias, params, batch_stats)
        dtypes[norm.path] = pair.dtype
    return FoldedLinen(_without(model, dtypes, biased), _pruned(variables), report)


def _traced(model, variables, inputs, kwargs):
    """The layers and norms that are called, by path, and the program that they are called in."""
    modules = {}

    def record(call, args, kwargs, context):
        module = context.module
        known = type(module) in (*LAYERS, *NORMS)
        if context.method_name != "__call__" or not (known or issubclass(type(module), NORMS)):
            return call(*args, **kwargs)
        path = "/".join(module.path) or "the model"
        modules[path] = module
        if not known:
            return call(*args, **kwargs)
        own = {**module.variables.get("params", {}), **module.variables.get("batch_stats", {})}
        return tagged_call(module, path, own, call, args, kwargs)

    options = {"mutable": ["batch_stats"], **kwargs}

    def run(variables, *inputs):
        with nn.intercept_methods(record):
            result = model.apply(variables, *inputs, **options)
        # Variables that come back as they were given are no other use of them.
        return result if options["mutable"] is False else result[0]

    return modules, traced_program(run, variables, inputs)


_OTHER_VARIABLES = (
    "`variables` must be those that jbn.tools.fold returned with this function, got {}, which has been "
    "folded"
)


def _without(model, dtypes, biased):
    """`model.apply` for folded variables."""

    def replace(call, args, kwargs, context):
        module = context.module
        if context.method_name != "__call__":
            return call(*args, **kwargs)
        if module.path in dtypes:
            if module.has_variable("batch_stats", "mean"):
                raise ValueError(_OTHER_VARIABLES.format(f"the statistics of {'/'.join(module.path)}"))
            require_inference(module, args, kwargs)
            x = args[0] if args else kwargs["x"]
            return x.astype(dtypes[module.path])
        y = call(*args, **kwargs)
        if module.path in biased:
            bias = module.get_variable("params", "bias")
            if bias is None:
                raise ValueError(_OTHER_VARIABLES.format(f"no bias of {'/'.join(module.path)}"))
            bias = bias.astype(y.dtype)
            y = y + bias.reshape((1,) * (y.ndim - bias.ndim) + bias.shape)
        return y

    meaning = object()

    def apply(variables, *args, **kwargs):
        with intercepted(replace, "folded", meaning):
            return model.apply(variables, *args, **kwargs)

    return apply


def _take(tree, path):
    """What a nested dict has at a path, taken out of it."""
    *parents, last = path
    for name in parents:
        tree = tree.get(name, {})
    return tree.pop(last, {})


def _pruned(tree):
    """A nested dict without the empty ones in it."""
    branches = {name: _pruned(v) if isinstance(v, dict) else v for name, v in tree.items()}
    return {name: v for name, v in branches.items() if not isinstance(v, dict) or v}
