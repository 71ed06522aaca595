"""One batch norm layer: what its arrays are like, how far they are off the data's, what is wrong."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np


class Finding(NamedTuple):
    """What is wrong with a layer, and what may be done."""

    problem: str
    fix: str


class Limits(NamedTuple):
    """See `jbn.tools.report`."""

    epsilon: float
    dead: float
    drift: float


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """A row of the report, with the columns that `jbn.tools.report` explains; None: not known."""

    layer: str
    channels: int
    dead: int
    collapsed: int
    non_finite: int
    stale: int
    drift: float | None = None
    var_ratio: tuple[float, float] | None = None
    effect: float | None = None
    output_change: float | None = None
    findings: tuple[Finding, ...] = ()


def layer_report(
    layer: str,
    arrays: Mapping[str, np.ndarray],
    data: Mapping[str, np.ndarray] | None,
    limits: Limits,
    output_change: float | None,
) -> LayerReport:
    """The row of a layer: its own arrays, and the mean and variance of the data, from `channelwise`."""
    mean, var, scale = arrays["mean"], arrays["var"], arrays.get("scale", np.ones(()))
    finite = {name: np.isfinite(v) for name, v in arrays.items()}
    sound = np.logical_and.reduce(list(finite.values()))
    dead = np.broadcast_to(np.abs(scale) < limits.dead, sound.shape)
    row = LayerReport(
        layer,
        channels=mean.size,
        dead=int(dead.sum()),
        collapsed=int((var < limits.epsilon).sum()),
        non_finite=int((~sound).sum()),
        stale=int(((mean == 0) & (var == 1)).sum()),
        output_change=output_change,
    )
    if data is not None:
        row = dataclasses.replace(row, **_against(data, mean, var, scale, sound, limits.epsilon))
    in_params = any(not finite[name].all() for name in finite if name in ("scale", "bias"))
    return dataclasses.replace(row, findings=tuple(_findings(row, limits, in_params, (var < 0).any())))


def channelwise(layer: str, arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays in one shape, float64 or complex; statistics of a group count for its channels."""
    values = {}
    for name, value in arrays.items():
        value = np.asarray(value)
        try:
            values[name] = value.astype(complex if np.iscomplexobj(value) else float)
        except (TypeError, ValueError):
            raise ValueError(
                f"{layer}: expected numbers as `{name}`, got dtype {value.dtype}"
            ) from None
    groups, channels = (values[name].shape[-1:] for name in ("mean", [*values][-1]))
    try:
        if groups and groups < channels:
            each = channels[0] // max(1, groups[0])
            values |= {name: np.repeat(values[name], each, axis=-1) for name in ("mean", "var")}
        if values["mean"].shape == values["var"].shape:
            return dict(zip(values, np.broadcast_arrays(*values.values()), strict=True))
    except ValueError:
        pass
    shapes = ", ".join(f"`{name}` {np.shape(v)}" for name, v in arrays.items())
    raise ValueError(f"{layer}: expected arrays of one shape, got {shapes}")


def _against(data, mean, var, scale, sound, epsilon):
    """The columns that compare with the data, over the channels that are finite in both."""
    sound = sound & np.isfinite(data["mean"]) & np.isfinite(data["var"])
    if not sound.any():
        return {}
    mean, var, scale = (np.broadcast_to(v, sound.shape)[sound] for v in (mean, var, scale))
    mean_data, var_data = (data[name][sound] for name in ("mean", "var"))
    off, sigma_data = np.abs(mean - mean_data), np.sqrt(np.maximum(var_data, 0) + epsilon)
    sigma, weight = np.sqrt(np.maximum(var, 0) + epsilon), np.abs(scale) ** 2
    change = np.maximum(var_data, 0) * (1 / sigma - 1 / sigma_data) ** 2 + (off / sigma) ** 2
    ratio = (sigma / sigma_data) ** 2
    total = np.sum(weight)
    return {
        "drift": float(np.max(off / sigma_data)),
        "var_ratio": (float(np.min(ratio)), float(np.max(ratio))),
        "effect": float(np.sqrt(np.sum(weight * change) / total)) if total else 0.0,
    }


def _findings(row, limits, in_params, negative):
    def channels(count):
        return f"{count} of {row.channels} channels"

    if row.non_finite:
        fix = "compute the statistics again over data, and look for what made them so"
        if in_params:
            fix = "the training diverged: go back to an earlier checkpoint and a lower learning rate"
        yield Finding(f"NaN or inf in {channels(row.non_finite)}", fix)
    if negative:
        yield Finding("negative variances", "the file is damaged, or something else has their name")
    if row.channels and row.stale == row.channels:
        fix = "carry `batch_stats` on from step to step, or compute the statistics over data"
        yield Finding("the running statistics are the initial ones, mean 0 and variance 1", fix)
    elif row.stale:
        fix = "there have been no samples: a domain or step never seen, or always masked"
        yield Finding(f"the initial statistics in {channels(row.stale)}", fix)
    if row.dead:
        fix = (
            "y is the bias there: prune them, or take scale out of weight decay (jbn.tools.decay_mask)"
        )
        yield Finding(f"|scale| below {limits.dead:g}, dead, in {channels(row.dead)}", fix)
    if row.collapsed:
        fix = "x is all but constant there: look for dead units or constant inputs before the layer"
        yield Finding(
            f"a variance below epsilon, {limits.epsilon:g}, in {channels(row.collapsed)}", fix
        )
    low, high = row.var_ratio or (1.0, 1.0)
    most = 1 + limits.drift
    off = row.drift is not None and (row.drift > limits.drift or low < most**-2 or high > most**2)
    if off and row.stale < row.channels:
        yield Finding(
            f"means off the data's by up to {row.drift:.2g} deviations, variances {low:.2g} to "
            f"{high:.2g} times the data's",
            "compute the running statistics again over data, take a smaller momentum or more steps, or "
            "prepare the data as in training",
        )
