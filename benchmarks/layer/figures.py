"""The tables and the picture of `layer`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.layer.bandwidth import PASSES
from benchmarks.shared import report

BASE = "flax.linen"  # what all speeds are relative to
LIBRARIES = (
    "jbn",
    BASE,
    f"{BASE}, again",  # the same program: how far its speed is from 1 is what to think of the others
    "flax.linen, two-pass",
    "flax.nnx",
    "haiku",
    "equinox",
    "keras",
    "torch",
)
WIDTH = 0.8  # of the bars of one layer together
COLORS = {name: f"C{i}" for i, name in enumerate(LIBRARIES)}


def tables(found: Mapping[str, Any], means: Mapping[str, Any]) -> list[str]:
    """A table of each kind, then why results were refused.

    Args:
        found: by kind and layer, what was "timed" and what was "refused".
        means: by kind and library, the geometric means.
    """
    out = []
    for kind, layers in found["timed"].items():
        rows = {layer: speeds(own) for layer, own in layers.items()}
        for layer, refused in found["refused"].get(kind, {}).items():
            rows[layer] |= dict.fromkeys(refused, "wrong")
        if len(layers) > 1:
            mean = {name: {"speed": runs} for name, runs in means[kind].items()}
            rows["geometric mean"] = speeds(mean)
        form, mode, dtype = kind.split(", ")
        title = f"Form {form}, {mode}, {dtype}, the time of {BASE} by that of each"
        if form == "loop":
            title += f"; limit: {PASSES[mode]} passes over x at the speed of a copy"
        out.append(report.table(title, "layer", rows))
    out += [
        f"{name}, {layer}, {kind}, was not timed: {why[0]}."
        for kind, layers in found["refused"].items()
        for layer, refused in layers.items()
        for name, why in refused.items()
    ]
    return out


def speeds(libraries: Mapping[str, Any]) -> dict[str, str]:
    """The row of a layer: speeds, and shares of the limit."""
    row = {
        name: report.span(own["speed"])
        for name, own in libraries.items()
        if name != BASE and "speed" in own
    }
    for name in ("jbn", BASE):
        if "share of the limit" in (own := libraries.get(name, {})):
            row[f"limit: {name}"] = report.span(own["share of the limit"], ".0%")
    return row


def picture(timed: Mapping[str, Any], path: Path) -> None:
    """Speed relative to Flax's, a panel for each kind; the lines are the range over the runs."""
    figure = Figure(figsize=(14, 1 + 3.2 * len(timed)), layout="constrained")
    axes = figure.subplots(len(timed), 1, squeeze=False)[:, 0]
    for ax, (kind, layers) in zip(axes, timed.items(), strict=True):
        names = [name for name in LIBRARIES if any(name in own for own in layers.values())]
        for i, name in enumerate(names):
            runs = [own.get(name, {}).get("speed", [np.nan]) for own in layers.values()]
            place = np.arange(len(layers)) + WIDTH * ((i + 0.5) / len(names) - 0.5)
            bars(ax, place, runs, WIDTH / len(names), name)
        ax.set_xticks(range(len(layers)), [layer.replace(", axis", "\naxis") for layer in layers])
        ax.tick_params(axis="x", labelrotation=20 if len(layers) > 4 else 0)
        ax.grid(axis="y", alpha=0.3)
        ax.set_axisbelow(True)
        ax.axhline(1, color="black", linewidth=0.8)
        ax.set(title=kind, ylabel=f"speed, {BASE} = 1", xlim=(-0.5, len(layers) - 0.5))
        ax.legend(ncols=2, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=58)


def bars(ax: Any, place: Any, runs: Sequence[Sequence[float]], width: float, name: str) -> None:
    """One library's bars, medians with their range."""
    low, middle, high = (np.array([f(values) for values in runs]) for f in (min, np.median, max))
    error = middle - low, high - middle
    ax.bar(place, middle, width, yerr=error, label=name, color=COLORS[name], error_kw={"lw": 0.8})
