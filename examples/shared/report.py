"""What several seeds come to, as text: mean and spread, and tables of them."""

import statistics
from collections.abc import Iterable, Mapping, Sequence

from .runs import Run

# The runs that differ in their seed alone, by what they have in common: of the first word is the colour
# of a learning curve, of the second, which may be empty, the style of its line.
Runs = Mapping[tuple[str, str], Sequence[Run]]


def spread(values: Iterable[float]) -> str:
    """Shares as "97.5% ± 0.4": their mean and, of two or more, their standard deviation (n - 1)."""
    numbers = [float(v) for v in values]
    mean = f"{statistics.fmean(numbers):.1%}"
    return mean if len(numbers) == 1 else f"{mean} ± {100 * statistics.stdev(numbers):.1f}"


def last_accuracy(runs: Sequence[Run]) -> str:
    """The spread of the test accuracies after the last epoch."""
    return spread(run.test_accuracy[-1] for run in runs)


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


def label(key: tuple[str, str]) -> str:
    """What the runs are called in tables and pictures."""
    return ", ".join(filter(None, key))


def table_of_runs(runs: Runs) -> str:
    """A line for the runs that differ in their seed alone: after the first and after the last epoch."""
    rows = {}
    for key, each in runs.items():
        first, last = (spread(run.test_accuracy[epoch] for run in each) for epoch in (0, -1))
        seconds = statistics.median(run.seconds_per_epoch for run in each)
        rows[label(key)] = (first, last, str(len(each)), f"{seconds:.2f}")
    return table("test accuracy", ("after epoch 1", "in the end", "seeds", "seconds per epoch"), rows)
