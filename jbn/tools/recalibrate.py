"""Running statistics of a population, for the weights as they are: "precise batch norm"."""

import functools
import math
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import core, nnx
from flax.core import meta
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.core import Tracer

from jbn import nnx as jbn_nnx
from jbn._norm import Norm
from jbn._typing import Array
from jbn.tools.batches import check_batch, check_batches, shown, variables_and_batches
from jbn.tools.compilation import compiled, intercepted
from jbn.tools.measured import NEW, TOTAL, Measured, nothing_yet
from jbn.tools.norm_layers import innermost, interceptor, with_norms
from jbn.variants.weighted_inference import WeightedInference

Call = Callable[[Any, Any], Any]
# The statistics of all layers, by the path of each and the name.
Stats = dict[tuple[Any, ...], Array]
# Passes beyond those that layers called once need, and the change that ends them, by the deviation.
_STEPS, _SETTLED = 20, 1e-5


def call_with_batch(model: Any, batch: Any) -> Any:
    """The default of `call`."""
    return model(batch)


def recalibrate(
    model: Any,
    /,
    *given: Any,
    call: Call = call_with_batch,
    layer_by_layer: bool = False,
    rngs: Any = None,
    progress: bool = False,
) -> Any:
    """Statistics of a population in place of running ones: `(model, variables, batches)` with Linen.

        mean = sum(n_b * mean_b) / sum(n_b)
        var  = sum(n_b * (var_b + |mean_b - mean|^2)) / sum(n_b)

    over the batches b, n_b being how many values of a channel count in it: the mean and variance of all
    values taken together. For weights that the running statistics were not gathered with, such as an
    average of weights or those at which a schedule-free optimizer evaluates.

    All else is as in inference: dropout is off, and no other state changes. A layer sees what reaches
    it where the layers before normalize by the statistics of their batch, as in training. With
    `layer_by_layer` it sees what reaches it in inference, where those before have their final
    statistics: exact, in as many passes over the data as layers follow one another, and one more that
    finds nothing changed. Layers that are called again come near in steps, and a warning says so if
    they have not settled after twenty. fvcore's
    `update_bn_stats` is the former. torch's `update_bn` weighs all batches alike and averages their
    unbiased variances, which leaves out how far their means lie apart.

    With `running_variance="unbiased"` the variance is n / (n - 1) of that, n being the number of all
    values. A batch in which a channel is not finite does not count in it. Layers that nothing finite
    reaches keep their statistics, and a warning names them. The layers are jbn's, with any norm, and
    Flax's. Each set of `jbn.domains` and `jbn.timesteps` is made of what is normalized by it; of
    domains there must be one in a batch. Statistics that are no mean or variance stay as they are.

    Of a batch that is sharded over devices it is the statistics of all of it, also where a layer has an
    `axis_name` that is not bound. It is one compiled program for each shape of batch, which is used
    again for the same function `call` and the same `model`, or an NNX model of the same structure, if
    these can be hashed: lists and dicts in their fields cannot. As under `jax.jit`, what the function
    reads besides its arguments is what it was then; methods of objects are compiled anew.

    Args:
        model, variables: a Linen module and its variables. An NNX module comes alone, and
            its statistics are updated in place: `recalibrate(model, batches)`.
        batches: what `call` takes, batch after batch; sizes may differ. For `layer_by_layer` something
            that can be iterated again, and is the same each time: a list, a loader, no generator.
        call: `call(model, batch)` calls the model, in inference: `lambda model, batch:
            model(batch["image"], train=False)`. Default `model(batch)`. NNX models are in `eval()`.
        layer_by_layer: see above. Default False.
        rngs: for Linen, those that the model needs in inference, as `model.apply` takes them.
        progress: show a bar, by tqdm. Default False.

    Returns:
        `variables` with new statistics, float32 at least; None for NNX.

    Raises:
        ValueError: there is no batch, or no layer; nothing has changed then.
        TypeError: an argument is not of the form above.
        ImportError: `progress` without tqdm.

    Example:
        >>> import jax, jax.numpy as jnp, jbn
        >>> model = jbn.linen.BatchNorm(use_running_average=True)
        >>> batches = [jnp.array([[1.], [2.]]), jnp.array([[3.], [4.], [5.]])]
        >>> variables = model.init(jax.random.key(0), batches[0])
        >>> variables = jbn.tools.recalibrate(model, variables, batches)
        >>> print(variables["batch_stats"])
        {'mean': Array([3.], dtype=float32), 'var': Array([2.], dtype=float32)}

    References:
        Wu and Johnson (2021), "Rethinking 'Batch' in BatchNorm", arXiv:2105.07576.
    """
    variables, batches = variables_and_batches(model, given)
    check_batches("batches", batches, "`layer_by_layer`" if layer_by_layer else None)
    population = functools.partial(_population, batches, layer_by_layer, progress)
    if isinstance(model, nnx.Module):
        result, left = _of_nnx(model, call, not layer_by_layer, population)
    else:
        of_model = {"rngs": rngs, "by_batch": not layer_by_layer, "population": population}
        result, left = _of_linen(model, variables[0], call, **of_model)
    if left:
        names = ", ".join(map(_joined, left))
        warnings.warn(f"no finite value reached {names}: the statistics stay as they are", stacklevel=2)
    return result


def _joined(path: tuple[Any, ...]) -> str:
    return "/".join(map(str, path)) or "the model itself"


def _measuring(by_batch: bool) -> Callable[[Norm], Norm]:
    def change(norm):
        weighted = by_batch and isinstance(norm, WeightedInference)  # training knows nothing of it
        return Measured(norm.norm if weighted else norm, by_batch)

    return functools.partial(innermost, change=change)


def _of_linen(model, variables, call, *, rngs, by_batch, population):
    boxed = variables.get("batch_stats", {})
    stats: Any = flatten_dict(core.unfreeze(meta.unbox(boxed)))
    others = {name: v for name, v in variables.items() if name != "batch_stats"}
    step = functools.partial(compiled(_linen_step, model, call, by_batch), others, rngs)
    new, left = population(step, stats, _layers(stats))
    new = meta.replace_boxed(core.unfreeze(boxed), unflatten_dict(stats | new))
    return core.copy(variables, {"batch_stats": new}), left


def _linen_step(model, call, by_batch, variables, rngs, stats, batch):
    variables = {**variables, "batch_stats": unflatten_dict(stats)}
    measured = interceptor(_measuring(by_batch), use_running_average=False)
    with intercepted(measured, "recalibrate", by_batch):
        _, updated = model.apply(variables, batch, method=call, rngs=rngs, mutable=["batch_stats"])
    return flatten_dict(core.unfreeze(updated["batch_stats"]))


def _of_nnx(model, call, by_batch, population):
    copy, layers = with_norms(model, _measuring(by_batch))
    copy.eval()
    owners: dict[int, Any] = {}
    for path, layer in layers.items():
        if (owner := owners.setdefault(id(vars(layer)["mean"]), path)) != path:
            raise ValueError(
                f"`model` has two layers with one mean, {_joined(owner)} and {_joined(path)}: what "
                f"reaches the one is not what reaches the other; give each statistics of its own"
            )
        totals = nothing_yet({name: getattr(layer, name)[...] for name in NEW})
        for name, value in totals.items():
            setattr(layer, name, nnx.BatchStat(value))
        layer._batch_stats += tuple(totals)
        layer.__class__ = _measuring_class(type(layer))
    structure, state, others = nnx.split(copy, nnx.BatchStat, ...)
    stats: Any = flatten_dict(nnx.to_pure_dict(state))
    step = functools.partial(compiled(_nnx_step, structure, call), (state, others))
    new, left = population(step, stats, list(layers))
    state = nnx.state(model, nnx.BatchStat)
    nnx.replace_by_pure_dict(state, unflatten_dict(new))
    nnx.update(model, state)
    return None, [path for path in _layers(stats) if path in left or path not in layers]


class _Measuring(jbn_nnx.BatchNorm):
    """A layer that measures, whatever mode its call asks for."""

    _CLOSED_OVER = (
        "jbn.tools.recalibrate notes down what reaches a layer, which it cannot in a transformation of "
        "JAX that closes over the model: nnx.vmap, nnx.cond, nnx.scan and their like hand it on"
    )

    def __call__(self, x, use_running_average=None, **options):
        del use_running_average
        return super().__call__(x, use_running_average=False, **options)


@functools.cache
def _measuring_class(cls):
    """A class of layers with `_Measuring` right before the layer of jbn that it derives from."""
    return _Measuring if cls is jbn_nnx.BatchNorm else type(cls.__name__, (cls, _Measuring), {})


def _nnx_step(structure, call, states, stats, batch):
    state, others = states
    nnx.replace_by_pure_dict(state, unflatten_dict(stats))
    model = nnx.merge(structure, state, others)
    call(model, batch)
    return flatten_dict(nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))


def _layers(stats: Stats) -> list[tuple[Any, ...]]:
    """The paths at which there are a mean and a variance."""
    return [path[:-1] for path in stats if path[-1] == "mean" and (*path[:-1], "var") in stats]


def _population(batches, layer_by_layer, progress, step, stats, layers):
    """The new mean and variance of layers, and the layers that nothing reached."""
    if not layers:
        raise ValueError(
            "`model` must have batch norm layers with running statistics, got none; Linen's need "
            "'batch_stats' in `variables`, and subclasses of flax.nnx.BatchNorm are left as they are"
        )
    passes = _most_passes(stats, layers) if layer_by_layer else 1
    new: Stats = {}
    totals: Stats = {}
    for number in range(passes):
        totals = {
            (*path, name): value
            for path in layers
            for name, value in nothing_yet({n: (stats | new)[*path, n] for n in NEW}).items()
        }
        start, seen = {**stats, **new}, 0
        description = f"pass {number + 1}" if layer_by_layer else "recalibrate"
        for seen, batch in enumerate(shown(batches, progress, description), 1):  # noqa: B007
            check_batch(batch)
            after = step(start | totals, batch)
            totals = {path: after[path] for path in totals}
        if not seen:
            raise ValueError(f"`batches` must hold a batch, got none in pass {number + 1} over them")
        before = new
        new = {(*path, name): totals[*path, NEW[name]] for path in layers for name in NEW}
        if before and all(_settled(before, new, path) for path in layers):
            break
    else:
        if layer_by_layer and not _traced(new):
            warnings.warn(
                f"the statistics still change after {passes} passes over the data, as those of layers "
                f"that are called again may",
                stacklevel=4,
            )
    counts = {path: totals[*path, TOTAL[2]] for path in layers}
    return new, [p for p, n in counts.items() if not isinstance(n, Tracer) and not n.any()]


def _most_passes(stats, layers):
    """After so many passes layers that follow one another have settled, and one pass shows it.

    In inference, as many layers are final after a pass as follow one another, at most all. Layers that
    are called again come near in steps.
    """
    rows = [max(1, math.prod(stats[*path, "mean"].shape[:-1])) for path in layers]
    return sum(rows) if _traced(stats) else sum(rows) + _STEPS


def _settled(before: Stats, new: Stats, path: tuple[Any, ...]) -> bool:
    """Whether a layer's statistics have hardly changed."""
    (mean, var), (old_mean, old_var) = ([s[*path, n] for n in NEW] for s in (new, before))
    if _traced([mean, var, old_mean, old_var]):
        return False
    near = jnp.abs(mean - old_mean) <= _SETTLED * jnp.sqrt(var)
    near &= jnp.abs(var - old_var) <= _SETTLED * var
    return bool(jnp.all(near | ~jnp.isfinite(var)))


def _traced(tree: Any) -> bool:
    return any(isinstance(v, Tracer) for v in jax.tree.leaves(tree))
