"""Haiku's BatchNorm: its parameters, and the moving averages in its state."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jbn import _checks
from jbn.tools.convert.channels import (
    Layer,
    floating,
    layer_arrays,
    params_and_stats,
    per_channel,
    require,
)
from jbn.tools.convert.debiasing import Match, sum_and_average

PARAMS = {"scale": "scale", "offset": "bias"}
AVERAGES = {"mean_ema": "mean", "var_ema": "var"}


def from_haiku(
    params: Mapping[str, Any],
    state: Mapping[str, Any],
    name: str,
    *,
    match: Match,
    axis: int = -1,
) -> Layer:
    """Parameters and statistics of a batch norm of Haiku.

        scale, offset -> scale, bias          mean_ema, var_ema -> mean, var

    Haiku keeps a sum that begins at zero, `hidden`, and normalizes with it divided by the weight of
    what it holds, `average`. After t steps with the decay d

        hidden  = d * hidden + (1 - d) * batch
        average = hidden / (1 - d^t)

    so the two libraries need different numbers, unless t is large:

        match="inference"  mean, var = average: y is Haiku's with `train=False`. Training with a
                           constant momentum then goes another way than Haiku's, by d^t; with
                           momentum d (1 - d^t) / (1 - d^(t + 1)) at the step after t, which may be
                           traced, it goes Haiku's.
        match="training"   mean, var = hidden: further steps with `momentum=d` give what Haiku's
                           `hidden` becomes. For inference, divide by 1 - d^t.

    Args:
        params, state: of the model, by `hk.transform_with_state`.
        name: the layer's, as in `state` before "/~/mean_ema": "resnet/~/initial_batchnorm".
        match: see above.
        axis: the axis of the channels. Haiku's arrays have all those of x, of size one the others.

    Returns:
        params: {"scale": (C,), "bias": (C,)}, what there is of them.
        batch_stats: {"mean": (C,), "var": (C,)}, float32 at least.

    Raises:
        ValueError, TypeError: a name is missing, or an array of another shape or kind; named in the
            message.

    Example:
        >>> import numpy as np, jbn
        >>> params = {"bn": {"scale": np.ones((1, 2)), "offset": np.zeros((1, 2))}}
        >>> ema = {"hidden": np.full((1, 2), 0.1), "average": np.ones((1, 2))}
        >>> state = {"bn/~/mean_ema": {**ema, "counter": 1}, "bn/~/var_ema": {**ema, "counter": 1}}
        >>> for match in ("inference", "training"):
        ...     print(jbn.tools.from_haiku(params, state, "bn", match=match)[1]["mean"])
        [1. 1.]
        [0.1 0.1]
    """
    _checks.choice("match", match, Match)
    which = "average" if match == "inference" else "hidden"
    modules = [f"{name}/~/{average}" for average in AVERAGES]
    require(state, modules, "`state`")
    require(params, [], "`params`")
    found = {}
    for theirs, ours in PARAMS.items():
        if theirs in params.get(name, {}):
            found[f"params['{name}']['{theirs}']"] = params[name][theirs], ours
    for module, ours in zip(modules, AVERAGES.values(), strict=True):
        require(state[module], [which], f"`state['{module}']`")
        found[f"state['{module}']['{which}']"] = state[module][which], ours
    arrays = per_channel({n: _along(axis, n, value) for n, (value, _) in found.items()})
    return params_and_stats({ours: arrays[n] for n, (_, ours) in found.items()})


def to_haiku(
    params: Mapping[str, Any],
    batch_stats: Mapping[str, Any],
    name: str,
    *,
    ndim: int,
    axis: int = -1,
    match: Match = "inference",
    counter: int | None = None,
    decay_rate: float | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Entries of a model of Haiku: the way back from `from_haiku`.

    Without a `counter`, Haiku goes on as jbn would, in inference and in training: its counter is set
    so high that it divides by 1. With one, what the statistics are not follows from what they are:

        match="inference"  average = (mean, var);  hidden = average * (1 - decay_rate^counter)
        match="training"   hidden = (mean, var);   average = hidden / (1 - decay_rate^counter)

    Args:
        params, batch_stats: of one layer.
        name: the layer's.
        ndim: number of dimensions of x, 4 for images: so many have Haiku's arrays.
        axis: the axis of the channels. Default -1.
        match: see above; as in `from_haiku`.
        counter: number of training steps that Haiku shall take these statistics to hold.
        decay_rate: the layer's; used with a counter alone.

    Returns:
        params: {name: {"scale", "offset"}}, or {} where there is neither.
        state: {name/~/mean_ema, name/~/var_ema: {"hidden", "average", "counter"}}.

    Raises:
        ValueError, TypeError: an argument is no layer's or not of the form above.

    Example:
        >>> import jbn
        >>> params, state = jbn.tools.to_haiku(*jbn.init(3), "net/~/batch_norm", ndim=4)
        >>> params["net/~/batch_norm"]["offset"].shape
        (1, 1, 1, 3)
    """
    arrays = layer_arrays(params, batch_stats)
    require(batch_stats, ["mean", "var"], "`batch_stats`")
    (axis,) = _checks.feature_axes(axis, ndim)
    others = tuple(a for a in range(ndim) if a != axis)
    arrays = {n: np.expand_dims(v, others) for n, v in arrays.items()}
    affine = {theirs: arrays[ours] for theirs, ours in PARAMS.items() if ours in arrays}
    state = {}
    for average, ours in AVERAGES.items():
        entries = sum_and_average(arrays[ours], match, counter, decay_rate)
        state[f"{name}/~/{average}"] = dict(zip(("hidden", "average", "counter"), entries, strict=True))
    return ({name: affine} if affine else {}), state


def _along(axis, name, value):
    """The one axis of the channels of an array whose other axes have size one."""
    v = floating(name, value)
    if v.ndim == 0 or not -v.ndim <= axis < v.ndim or v.size != v.shape[axis]:
        raise ValueError(
            f"`{name}` must have size one in all axes but `axis`, {axis}, got shape {v.shape}; give "
            f"the axis of the channels"
        )
    return v.reshape(-1)
