"""How the cost of one layer grows with the batch and with the channels, forward and backward.

Steps in one compiled loop, float32. The exponent is the slope of log time over log size, fitted to the
upper half of the sizes, where what a step costs at any size no longer counts: 1 is proportional.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks import layer_case
from benchmarks.layer_figures import COLORS
from benchmarks.layer_times import BASE, FIRST, measure

SIZES = {
    "batch": tuple(2**i for i in range(11)),
    "channels": tuple(2**i for i in range(3, 13)),
}
SHAPES: dict[str, Callable[[int], tuple[int, ...]]] = {
    "batch": lambda n: (n, 14, 14, 64),
    "channels": lambda n: (4096, n),
}
NAMES = {"batch": "(batch, 14, 14, 64)", "channels": "(4096, channels)"}
MODE = "forward+backward"


def exponent(sizes: Sequence[int], times: Sequence[float]) -> float:
    """The slope of log time over log size in the upper half of the sizes."""
    upper = slice(len(sizes) // 2, None)
    return float(np.polyfit(np.log(sizes[upper]), np.log(times[upper]), 1)[0])


def growth(
    repeats: int,
    seed: int,
    quick: bool,
    progress: Callable[[Iterable[Any], str], Iterable[Any]],
) -> dict[str, Any]:
    """By what grows: the sizes, and by library the milliseconds per step and the exponent.

    Args:
        repeats: rounds.
        seed: of the data.
        quick: every third size only, without the largest.
        progress: wraps the loop, given what it is about.
    """
    sizes = {kind: all_[: -3 if quick else None : 3 if quick else 1] for kind, all_ in SIZES.items()}
    jobs = [(kind, n) for kind in sizes for n in sizes[kind]]
    ms: dict[str, dict[str, list[float]]] = {kind: {FIRST: [], BASE: []} for kind in sizes}
    for kind, n in progress(jobs, "growth"):
        case = layer_case.make(SHAPES[kind](n), -1, "float32", seed)
        r = layer_case.expected(case)[MODE]
        record = measure(case, MODE, "scan", (FIRST, BASE), repeats, r)
        for name, values in ms[kind].items():
            values.append(record["libraries"].get(name, {"ms": np.nan})["ms"])
    return {
        kind: {
            "shape": NAMES[kind],
            "sizes": sizes[kind],
            "ms": ms[kind],
            "exponent": {name: exponent(sizes[kind], values) for name, values in ms[kind].items()},
        }
        for kind in sizes
    }


def picture(found: Mapping[str, Any], path: Path) -> None:
    """Time per step against size, a panel for what grows."""
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    for ax, (kind, row) in zip(figure.subplots(1, len(found)), found.items(), strict=True):
        for name, marker in ((BASE, "s"), (FIRST, "o")):
            label = f"{name}: time ~ {kind}^{row['exponent'][name]:.2f}"
            ax.loglog(row["sizes"], row["ms"][name], marker=marker, color=COLORS[name], label=label)
        lowest = row["sizes"][len(row["sizes"]) // 2]
        ax.axvspan(lowest, row["sizes"][-1], color="black", alpha=0.06, label="fitted here")
        ax.set(xlabel=kind, ylabel="ms per step, forward + backward", title=row["shape"])
        ax.grid(alpha=0.3)
        ax.legend()
    figure.savefig(path, dpi=100)
