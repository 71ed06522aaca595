"""Learning curves of runs: those that differ in their seed alone are one line with a band."""

import itertools
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TABLEAU_COLORS
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

import report
import trials


def repeated(runs: Sequence[report.Run]) -> dict[str, list[report.Run]]:
    """The runs that differ in their seed alone, by name and, where there are several, learning rate."""
    several = len({run.learning_rate for run in runs}) > 1
    groups: dict[str, list[report.Run]] = {}
    for run in runs:
        rate = f", learning rate {run.learning_rate:g}" if several else ""
        groups.setdefault(f"{run.name}{rate}", []).append(run)
    return groups


def table(runs: Sequence[report.Run]) -> str:
    """A line for the runs that differ in their seed alone; the spread is a standard deviation."""
    rows = {}
    for name, seeds in repeated(runs).items():
        accuracy = trials.spread([run.test_accuracy[-1] for run in seeds])
        seconds = statistics.median(run.seconds_per_epoch for run in seeds)
        rows[name] = (accuracy, str(len(seeds)), f"{seconds:.2f}")
    return trials.table("", ("test accuracy", "seeds", "seconds per epoch"), rows)


def figure(runs: Sequence[report.Run]) -> Figure:
    """Test accuracy and training loss against the epoch: the seeds' mean, and from lowest to highest.

    A colour for each name, a line style for each learning rate.
    """
    names = dict.fromkeys(run.name for run in runs)
    rates = dict.fromkeys(run.learning_rate for run in runs)
    colours = dict(zip(names, itertools.cycle(TABLEAU_COLORS), strict=False))
    styles = dict(zip(rates, itertools.cycle(["-", "--"]), strict=False))
    out = Figure(figsize=(10, 4.4), dpi=110, layout="constrained")
    left, right = out.subplots(1, 2)
    groups = repeated(runs)
    for label, seeds in groups.items():
        look = {"color": colours[seeds[0].name], "linestyle": styles[seeds[0].learning_rate]}
        _band(left, np.array([run.test_accuracy for run in seeds]), label, look)
        _band(right, np.array([run.train_loss for run in seeds]), label, look)
    count = max(map(len, groups.values()))
    shown = f"mean of {count} seeds, band: lowest to highest" if count > 1 else "one seed"
    left.set_ylabel("test accuracy")
    left.yaxis.set_major_formatter(PercentFormatter(1))
    right.set_ylabel("training loss (cross entropy)")
    right.set_yscale("log")
    for axes in (left, right):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    out.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=2, title=shown)
    return out


def _band(axes: Axes, values: np.ndarray, label: str, look: Mapping[str, Any]) -> None:
    epochs = np.arange(1, values.shape[1] + 1)
    axes.plot(epochs, values.mean(0), label=label, marker="o", markersize=4, **look)
    if len(values) > 1:
        low, high = values.min(0), values.max(0)
        axes.fill_between(epochs, low, high, color=look["color"], alpha=0.15, linewidth=0)


def draw(runs: Sequence[report.Run], picture: Path) -> None:
    """Writes the curves as a PNG, and prints what it shows."""
    trials.save(figure(runs), picture)
