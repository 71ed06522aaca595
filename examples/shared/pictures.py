"""What several seeds come to, as pictures: curves with bands, points with bars, learning curves."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TABLEAU_COLORS
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from .report import Runs, label

LARGEST = 150_000


def curve(axes: Axes, x: Any, values: Any, name: str, style: str = "-", **look: Any) -> None:
    """Draws (seeds, points) as a line, the mean, in a band from the lowest to the highest seed."""
    array = np.asarray(values)
    (line,) = axes.plot(x, array.mean(0), style, label=name, **look)
    band = {"color": line.get_color(), "alpha": 0.18, "linewidth": 0}
    axes.fill_between(x, array.min(0), array.max(0), **band)


def points(axes: Axes, x: Any, values: Any, name: str, **look: Any) -> None:
    """Draws (seeds, points) as points, the means, with bars of a standard deviation to both sides."""
    array = np.asarray(values)
    deviation = array.std(0, ddof=1) if len(array) > 1 else None
    look = {"marker": "o", "capsize": 3, **look}
    axes.errorbar(x, array.mean(0), deviation, label=name, **look)


def accuracy_axis(axes: Axes, text: str = "test accuracy") -> None:
    """Makes the y axis one of accuracies, in percent, with a grid."""
    axes.set_ylabel(text)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(alpha=0.3)


def learning_curves(runs: Runs) -> Figure:
    """Test accuracy and training loss against the epoch."""
    first, second = ([key[i] for key in runs] for i in (0, 1))
    colour_of = dict(zip(dict.fromkeys(first), itertools.cycle(TABLEAU_COLORS), strict=False))
    style_of = dict(zip(dict.fromkeys(second), itertools.cycle(("-", "--", ":")), strict=False))
    figure = Figure(figsize=(10, 4.4), dpi=110, layout="constrained")
    accuracies, losses = figure.subplots(1, 2)
    for key, each in runs.items():
        look = {"style": style_of[key[1]], "color": colour_of[key[0]], "marker": "o", "markersize": 4}
        epochs = range(1, 1 + len(each[0].test_accuracy))
        curve(accuracies, epochs, [run.test_accuracy for run in each], label(key), **look)
        curve(losses, epochs, [run.train_loss for run in each], label(key), **look)
    accuracy_axis(accuracies)
    losses.set(ylabel="training loss (cross entropy)", yscale="log")
    losses.grid(alpha=0.3)
    for axes in (accuracies, losses):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend_below(figure, accuracies, seeds=max(map(len, runs.values())))
    return figure


def legend_below(figure: Figure, axes: Axes, seeds: int, columns: int = 2) -> None:
    """One legend for all of the figure, of what is in these axes."""
    title = f"mean of {seeds} seeds, and their range" if seeds > 1 else "one seed"
    entries: Sequence[Any] = axes.get_legend_handles_labels()
    figure.legend(*entries, loc="outside lower center", ncols=columns, title=title)


def save(figure: Figure, path: Path) -> None:
    """Writes the figure as a PNG of less than 150 kB, with fewer pixels if need be, and says so."""
    dpi = figure.dpi
    figure.savefig(path, format="png", dpi=dpi)
    while path.stat().st_size >= LARGEST:
        dpi *= 0.8
        figure.savefig(path, format="png", dpi=dpi)
    print(path)
