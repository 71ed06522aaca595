"""The report on a model: rows, the table of them, findings in words, a picture."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from jbn.tools.inspection.histograms import draw
from jbn.tools.inspection.layer_report import LayerReport

# The attributes of a row by the headings of the table; a column that no row has is left out.
COLUMNS = {
    "layer": ("layer", "{}"),
    "channels": ("channels", "{}"),
    "dead": ("dead", "{}"),
    "collapsed": ("collapsed", "{}"),
    "non-finite": ("non_finite", "{}"),
    "stale": ("stale", "{}"),
    "drift": ("drift", "{:.2g}"),
    "var ratio": ("var_ratio", "{0[0]:.2g} to {0[1]:.2g}"),
    "effect": ("effect", "{:.1%}"),
    "output": ("output_change", "{:.1%}"),
}


@dataclasses.dataclass(frozen=True)
class Report:
    """What `jbn.tools.report` found; `str` of it is a table and the findings in words.

    Attributes:
        layers: a row for each layer.
        output_change: of the model's output with the data's statistics in all layers; None: not known.
        arrays: "mean", "var" and, where there are any, "scale" and "bias" of each layer by its name.
        epsilon: as given.
    """

    layers: tuple[LayerReport, ...]
    output_change: float | None
    arrays: Mapping[str, Mapping[str, np.ndarray]] = dataclasses.field(repr=False)
    epsilon: float

    def __str__(self):
        lines = [self._table(), ""]
        if self.output_change is not None:
            change = f"{self.output_change:.1%}"
            lines += [f"with the data's statistics in all layers the output changes by {change}", ""]
        every = [(row.layer, *found) for row in self.layers for found in row.findings]
        for fix in dict.fromkeys(fix for _, _, fix in every):
            lines += [f"{layer}: {problem}" for layer, problem, own in every if own == fix]
            lines.append(f"    {fix}")
        return "\n".join(lines if every else [*lines, "nothing found"])

    def picture(self, path: Any) -> None:
        """Draws histograms of scale, means and deviations by layer; needs the extra `examples`."""
        draw(self.arrays, self.epsilon, path)

    def _table(self):
        columns = []
        for heading, (attribute, form) in COLUMNS.items():
            values = [getattr(row, attribute) for row in self.layers]
            if any(v is not None for v in values):
                cells = [heading, *("" if v is None else form.format(v) for v in values)]
                width = max(map(len, cells))
                columns.append([c.rjust(width) if columns else c.ljust(width) for c in cells])
        return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))
