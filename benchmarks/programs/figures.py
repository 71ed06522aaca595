"""The tables and the picture of what was found."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.shared import report

COLORS = {
    "flax": "C1",
    "jbn": "C0",
    "no norm": "C7",
    "jbn, leaky_relu": "C0",
    "jbn in place": "C2",
    "jbn, relu": "C9",
    "jbn, relu, remat_policy": "C4",
}
Found = Mapping[str, Mapping[str, Any]]
Rows = dict[str, str]


def tables(found: Found) -> Iterator[str]:
    """One per part, a row per case, a column per chip."""
    for part, (title, rows) in _TABLES.items():
        columns = {chip: rows(parts[part]["figures"]) for chip, parts in found.items() if part in parts}
        names = dict.fromkeys(name for cells in columns.values() for name in cells)
        if names:
            cells = {
                name: {chip: column.get(name, "") for chip, column in columns.items()} for name in names
            }
            yield report.table(title, "case", cells)


def _layer_rows(figures: Mapping[str, Any]) -> Rows:
    def cell(row):
        return ", ".join(
            f"{row['jbn'][way]:.2f} ({row['flax'][way]:.2f})" for way in ("forward", "backward")
        )

    return {
        f"{case}, {dtype}": cell(r) for dtype, cases in figures.items() for case, r in cases.items()
    }


def _network_rows(figures: Mapping[str, Any]) -> Rows:
    def cell(row, name):
        return ", ".join(
            f"{size:.3g} ({size / row['flax'][what]:.3f}){what.removeprefix('GB')}"
            for what, size in row[name].items()
        )

    return {
        f"{network}, {dtype}, {name}": cell(row, name)
        for network, by_dtype in figures.items()
        for dtype, row in by_dtype.items()
        for name in row
    }


def _memory_rows(figures: Mapping[str, Any]) -> Rows:
    return {
        f"{name}, {dtype}": f"{row['tensors']:.2f} ({row['against flax']:.2f})"
        for dtype, cases in figures.items()
        for name, row in cases.items()
    }


def _all_reduce_rows(figures: Mapping[str, Any]) -> Rows:
    def span(pair: Sequence[int]) -> str:
        return f"{pair[0]}" if pair[0] == pair[1] else f"{pair[0]} (at most {pair[1]})"

    return {
        f"{count}, {way}, {library}": f"{span(row['forward'])}, {span(row['backward'])}"
        for count, ways in figures.items()
        for way, libraries in ways.items()
        for library, row in libraries.items()
    }


_TABLES: dict[str, tuple[str, Callable[[Mapping[str, Any]], Rows]]] = {
    "layers": (
        "BYTES, NOT TIMES: one layer in passes over x, jbn (flax): forward, backward",
        _layer_rows,
    ),
    "networks": (
        "BYTES, NOT TIMES: one training step in GB (by flax's); off chip: less what a TPU keeps there",
        _network_rows,
    ),
    "memory": (
        "MEMORY of a gradient, in outputs of one layer (by flax's with the same activation)",
        _memory_rows,
    ),
    "all-reduces": (
        "ALL-REDUCES of a layer: forward, backward (at most: where the data need it)",
        _all_reduce_rows,
    ),
}


def picture(found: Found, path: Path) -> None:
    """A panel per part."""
    figure = Figure(figsize=(12, 8.5), dpi=100, layout="constrained")
    for axes, (part, draw) in zip(figure.subplots(2, 2).flat, _PANELS.items(), strict=True):
        known = {chip: parts[part]["figures"] for chip, parts in found.items() if part in parts}
        draw(axes, known)
        axes.grid(axis="y", alpha=0.3)
    figure.suptitle("What the compilers for GPUs and TPUs make of flax and jbn: bytes, not times")
    figure.savefig(path)


def _draw_layers(axes: Any, known: Mapping[str, Any]) -> None:
    ticks = []
    for chip, by_dtype in known.items():
        rows = [row for cases in by_dtype.values() for row in cases.values()]
        for way in ("forward", "backward"):
            for library, shift in {"flax": -0.15, "jbn": 0.15}.items():
                values = [row[library][way] for row in rows]
                axes.scatter(
                    [len(ticks) + shift] * len(values),
                    values,
                    color=COLORS[library],
                    marker="s" if library == "flax" else "o",
                    alpha=0.6,
                    label=None if ticks else library,
                )
            ticks.append(f"{chip}\n{way}")
    axes.set_xticks(range(len(ticks)), ticks, fontsize=7)
    axes.set(title="one layer: every shape and dtype", ylabel="passes over x", ylim=(0, None))
    if ticks:
        axes.legend()


def _draw_networks(axes: Any, known: Mapping[str, Any]) -> None:
    ratios = {
        f"{chip}\n{network}\n{dtype}": {
            name: row[name]["GB"] / row["flax"]["GB"] for name in row if name != "flax"
        }
        for chip, networks in known.items()
        for network, by_dtype in list(networks.items())[:1]
        for dtype, row in by_dtype.items()
    }
    _bars(axes, ratios)
    axes.set(title="one training step: bytes by flax's")


def _draw_memory(axes: Any, known: Mapping[str, Any]) -> None:
    ratios = {
        f"{chip}\n{dtype}": {
            name: row["against flax"] for name, row in cases.items() if name.startswith("jbn")
        }
        for chip, by_dtype in known.items()
        for dtype, cases in by_dtype.items()
    }
    _bars(axes, ratios)
    axes.set(title="the gradient of a stack: memory by flax's")


def _draw_all_reduces(axes: Any, known: Mapping[str, Any]) -> None:
    sums = {
        f"{chip}\n{count}\n{way}": {
            library: row["forward"][0] + row["backward"][0] for library, row in libraries.items()
        }
        for chip, counts in known.items()
        for count, ways in list(counts.items())[-1:]
        for way, libraries in ways.items()
    }
    _bars(axes, sums, line=None)
    axes.set(title="all-reduces of a layer, forward and backward, in the usual case")


def _bars(axes: Any, groups: Mapping[str, Mapping[str, float]], line: float | None = 1.0) -> None:
    """A group of bars for each tick, with a line where flax is."""
    names = list(next(iter(groups.values()), {}))
    width = 0.8 / max(len(names), 1)
    for i, name in enumerate(names):
        at = [x + (i - (len(names) - 1) / 2) * width for x in range(len(groups))]
        axes.bar(at, [g.get(name, 0) for g in groups.values()], width, label=name, color=COLORS[name])
    if line is not None:
        axes.axhline(line, color=COLORS["flax"], linewidth=1, label="flax")
    axes.set_xticks(range(len(groups)), groups, fontsize=7)
    axes.margins(y=0.3)
    if groups:
        axes.legend(fontsize=8, ncols=3)


_PANELS = {
    "layers": _draw_layers,
    "networks": _draw_networks,
    "memory": _draw_memory,
    "all-reduces": _draw_all_reduces,
}
