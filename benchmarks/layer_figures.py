"""Tables and pictures of the records of `layer_times`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from rich.table import Table

from benchmarks import report
from benchmarks.bandwidth import PASSES
from benchmarks.layer_targets import select
from benchmarks.layer_times import BASE, FIRST, LIBRARIES

FORMS = {"scan": "scan: steps inside one compiled loop", "call": "call: one call at a time"}
WIDTH = 0.8  # of the bars of one layer together
COLORS = {name: f"C{i}" for i, name in enumerate(LIBRARIES)}


def present(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """The libraries that have a time in any of the records, in their usual order."""
    return [name for name in LIBRARIES if any(name in record["libraries"] for record in records)]


def table(records: Sequence[Mapping[str, Any]], note: str = "") -> Table:
    """Rows layers: the speed of each library relative to Flax's, then times and shares of the limit.

    Args:
        records: of one form, dtype and mode.
        note: added to the title.
    """
    names = present(records)
    rows: dict[str, dict[str, str]] = {}
    for record in records:
        libraries = record["libraries"]
        row = {}
        for name in names:
            if name in record["refused"]:
                row[name] = "[red]wrong"
            elif name not in libraries:
                row[name] = "-"
            else:
                row[name] = f"{libraries[name].get(f'{BASE} / this', np.nan):.2f}"
        for name in (FIRST, BASE):
            own = libraries.get(name, {})
            row[f"{name}, ms"] = f"{own['ms']:.3f}" if own else "-"
            if record["form"] == "scan":
                row[f"{name}, limit"] = f"{own['share of the limit']:.0%}" if own else "-"
        if record["form"] == "scan":
            row["copy, GB/s"] = f"{record['GB/s']['copy']:.0f}"
        rows[record["layer"]] = row
    first = records[0]
    about = f"{FORMS[first['form']]}{note}; {first['dtype']}, {first['mode']}, {first['rounds']} rounds"
    speed = f"speed relative to {BASE} (its time / this time, larger is faster)"
    limit = f"; limit: share of {PASSES[first['mode']]} passes over x at the speed of a copy"
    title = f"{about}\n{speed}{limit if first['form'] == 'scan' else ''}"
    return report.table(title, "layer", rows)


def grouped_bars(ax: Any, layers: Sequence[str], values: Mapping[str, Sequence[float]]) -> None:
    """For each layer a group of bars, one per name."""
    places = np.arange(len(layers))
    width = WIDTH / len(values)
    for i, (name, heights) in enumerate(values.items()):
        left = places - WIDTH / 2 + (i + 0.5) * width
        ax.bar(left, heights, width, label=name, color=COLORS.get(name.partition(":")[0]))
    ax.set_xticks(places, [layer.replace(", axis", "\naxis") for layer in layers])
    ax.set_xlim(-0.5, len(layers) - 0.5)
    ax.tick_params(axis="x", labelrotation=20 if len(layers) > 4 else 0)
    ax.grid(axis="y", alpha=0.3)
    ax.set_axisbelow(True)


def layer_names(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each once."""
    return list(dict.fromkeys(record["layer"] for record in records))


def heights(
    records: Sequence[Mapping[str, Any]], layers: Sequence[str], name: str, key: str
) -> list[float]:
    """A figure of one library by layer, NaN where it has none."""
    by_layer = {record["layer"]: record["libraries"].get(name, {}) for record in records}
    return [by_layer.get(layer, {}).get(key, np.nan) for layer in layers]


def speed_picture(panels: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Speed relative to Flax's, a panel for each set of records that is not empty."""
    panels = {title: records for title, records in panels.items() if records}
    figure = Figure(figsize=(14, 1 + 3.6 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    for ax, (title, records) in zip(axes, panels.items(), strict=True):
        layers = layer_names(records)
        key = f"{BASE} / this"
        values = {name: heights(records, layers, name, key) for name in present(records)}
        grouped_bars(ax, layers, values)
        ax.axhline(1, color="black", linewidth=0.8)
        ax.set(title=title, ylabel=f"speed, {BASE} = 1")
        ax.legend(ncols=2, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=76)


def limit_picture(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The share of the limit, of jbn and Flax, a panel per mode."""
    modes = [mode for mode in PASSES if any(record["mode"] == mode for record in records)]
    figure = Figure(figsize=(12, 1 + 3.2 * len(modes)), layout="constrained")
    for ax, mode in zip(figure.subplots(len(modes), 1, squeeze=False)[:, 0], modes, strict=True):
        chosen = [record for record in records if record["mode"] == mode]
        layers = layer_names(chosen)
        values = {n: heights(chosen, layers, n, "share of the limit") for n in (FIRST, BASE)}
        grouped_bars(ax, layers, values)
        ax.axhline(1, color="black", linewidth=0.8)
        ax.yaxis.set_major_formatter(PercentFormatter(1))
        title = (
            f"{mode}, {chosen[0]['dtype']}: {PASSES[mode]} passes over x at the speed of a copy = 100%"
        )
        ax.set(title=title, ylabel="share of the limit")
        ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=76)


def pictures(records: Sequence[Mapping[str, Any]], kept: Sequence[Any], folder: Path) -> None:
    """layer.png and layer_limit.png, of float32 where it was measured."""
    dtypes = [record["dtype"] for record in records]
    dtype = "float32" if "float32" in dtypes else dtypes[0]
    speeds = {
        f"{FORMS[form]}; {dtype}, {mode}": select(records, form, mode, dtype)
        for form, mode in (
            ("scan", "forward+backward"),
            ("scan", "inference"),
            ("call", "forward+backward"),
        )
    }
    title = f"{FORMS['call']}, memory pages kept; {dtype}, forward+backward"
    speeds[title] = select(kept, "call", "forward+backward", dtype)
    if any(speeds.values()):
        speed_picture(speeds, folder / "layer.png")
    scans = select(records, "scan", dtype=dtype)
    if scans:
        limit_picture(scans, folder / "layer_limit.png")
