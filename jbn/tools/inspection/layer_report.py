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
    channels = max(v.shape[-1:] for v in values.values())
    for name in ("mean", "var"):
        if values[name].ndim and channels[0] % values[name].shape[-1] == 0:
            values[name] = np.repeat(values[name], channels[0] // values[name].shape[-1], axis=-1)
    try:
        return dict(zip(values, np.broadcast_arrays(*values.values()), strict=True))
    except ValueError:
        shapes = ", ".join(f"`{name}` {np.shape(v)}" for name, v in arrays.items())
        raise ValueError(f"{layer}: expected arrays of one shape, got {shapes}") from None


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
    def of(count):
        return f"{count} of {row.channels} channels"

    if row.non_finite:
        fix = "compute the statistics again over data, and look for what made them so"
        if in_params:
            fix = "the training diverged: go back to an earlier checkpoint and a lower learning rate"
        yield Finding(f"{of(row.non_finite)} have NaN or inf", fix)
    if negative:
        yield Finding(
            "negative variances", "the file is damaged, or other values were taken for variances"
        )
    if row.stale == row.channels:
        fix = "carry `batch_stats` on from step to step, or compute the statistics over data"
        yield Finding("the running statistics are the initial ones, mean 0 and variance 1", fix)
    elif row.stale:
        fix = "they have had no samples: a domain or step never seen, or always masked"
        yield Finding(f"{of(row.stale)} have the initial statistics", fix)
    if row.dead:
        fix = (
            "y is the bias there: prune them, or take scale out of weight decay (jbn.tools.decay_mask)"
        )
        yield Finding(f"{of(row.dead)} are dead, |scale| < {limits.dead:g}", fix)
    if row.collapsed:
        fix = "x is all but constant there: look for dead units or constant inputs before the layer"
        yield Finding(f"{of(row.collapsed)} have a variance below epsilon, {limits.epsilon:g}", fix)
    if row.drift is None or row.stale == row.channels:
        return
    low, high = row.var_ratio
    if row.drift > limits.drift or low < 1 / (1 + limits.drift) ** 2 or high > (1 + limits.drift) ** 2:
        yield Finding(
            f"the running statistics are off the data's: means by up to {row.drift:.2g} deviations, "
            f"variances by factors of {low:.2g} to {high:.2g}",
            "compute them again over data, take a smaller momentum or more steps, or prepare the "
            "data as in training",
        )
