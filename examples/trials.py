"""What examples that repeat a training with several seeds share: spread, table, drawing, picture."""

import argparse
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

LARGEST_PICTURE = 150_000


def seeds(args: argparse.Namespace) -> range:
    """The seeds that `--seed` and `--seeds` name."""
    return range(args.seed, args.seed + args.seeds)


def spread(values: Sequence[float] | np.ndarray) -> str:
    """Shares as "97.5% ± 0.4": their mean and, of two or more, their standard deviation (n - 1)."""
    mean, deviation = _mean_and_deviation(values)
    return f"{mean:.1%}" if deviation is None else f"{mean:.1%} ± {100 * deviation:.1f}"


def spread_of_losses(values: Sequence[float] | np.ndarray) -> str:
    """The same of losses: "0.152 ± 0.005"."""
    mean, deviation = _mean_and_deviation(values)
    return f"{mean:.3f}" if deviation is None else f"{mean:.3f} ± {deviation:.3f}"


def _mean_and_deviation(values: Sequence[float] | np.ndarray) -> tuple[float, float | None]:
    numbers = [float(v) for v in values]
    return statistics.fmean(numbers), statistics.stdev(numbers) if len(numbers) > 1 else None


def table(first: str, columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    """Aligned text, the names to the left and the cells to the right.

    Args:
        first: the heading of the names; may be empty.
        columns: the headings of the cells.
        rows: the cells of each name, one per column.
    """
    lines = [[first, *columns], *([name, *cells] for name, cells in rows.items())]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([name.ljust(widths[0]), *map(str.rjust, cells, widths[1:])]).rstrip()
        for name, *cells in lines
    )


def curve(
    axes: Axes, x: Any, values: Sequence[Sequence[float]] | np.ndarray, label: str, linestyle: str = "-"
) -> None:
    """Draws the mean over the seeds as a line in a band of a deviation to both sides.

    Args:
        axes: drawn into.
        x: (points,), the same for every seed.
        values: (seeds, points).
        label: for the legend.
        linestyle: Matplotlib's.
    """
    mean, deviation = _moments(values)
    axes.plot(x, mean, linestyle, label=label)
    axes.fill_between(x, mean - deviation, mean + deviation, alpha=0.2, linewidth=0)


def points(axes: Axes, x: Any, values: Sequence[Sequence[float]] | np.ndarray, label: str) -> None:
    """Draws the same as points, with bars of a deviation to both sides."""
    mean, deviation = _moments(values)
    axes.errorbar(x, mean, deviation, marker="o", capsize=3, label=label)


def _moments(values: Sequence[Sequence[float]] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    array = np.asarray(values, np.float64)
    return array.mean(0), array.std(0, ddof=1) if len(array) > 1 else np.zeros(array.shape[1])


def accuracy_axis(axes: Axes) -> None:
    """Makes the y axis one of test accuracies, in percent, with a legend and a grid."""
    axes.set_ylabel("test accuracy")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(alpha=0.3)
    axes.legend()


def save(figure: Figure, path: Path) -> None:
    """Writes the figure as a PNG of less than 150 kB and prints what it shows, from its axes' labels.

    A figure that would be larger gets fewer pixels.
    """
    dpi = figure.dpi
    figure.savefig(path, format="png", dpi=dpi)
    while path.stat().st_size >= LARGEST_PICTURE:
        dpi *= 0.8
        figure.savefig(path, format="png", dpi=dpi)
    labels = ((axes.get_ylabel(), axes.get_xlabel()) for axes in figure.axes)
    shown = dict.fromkeys(f"{y} against {x}" for y, x in labels if x and y)
    print(f"{path}: {', '.join(shown)}")
