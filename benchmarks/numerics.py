"""How far is y from the exact result? jbn and its peers against float64, forward and backward.

Every library normalizes the same float32 input in training mode with epsilon 1e-5, scale 1 and bias 0;
the reference is float64 arithmetic on that same input. Not timed.
"""

import functools
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.progress import track

from benchmarks import report
from benchmarks.peers import JBN, LIBRARIES, Way, arguments
from benchmarks.reference import error, gradient_error, reference

INPUTS = {  # (mean, deviation); without deviation y is to be exactly the bias, 0
    "N(0, 1)": (0.0, 1.0),
    "N(2, 1)": (2.0, 1.0),
    "N(7, 1)": (7.0, 1.0),
    "N(1e2, 1)": (1e2, 1.0),
    "N(1e3, 1)": (1e3, 1.0),
    "N(1e4, 1)": (1e4, 1.0),
    "N(1e5, 1)": (1e5, 1.0),
    "N(1e3, 1e-2)": (1e3, 1e-2),
    "N(1e-3, 1e-6)": (1e-3, 1e-6),
    "constant 100.1": (100.1, 0.0),
    "constant 1.234567e7": (1.234567e7, 0.0),
}
RATIOS = np.logspace(0, 7, 15)
Y_TARGET, GRADIENT_TARGET = 1e-6, 1e-5
GRADIENTS = ("dx", "dscale", "dbias")


def errors(ways: list[Way], x: np.ndarray, dy: np.ndarray, forward_only: bool) -> dict[str, float]:
    """The error of y, and of the three gradients, in the worst of `ways`."""
    r = reference(x, dy)
    found = []
    for way in ways:
        args = arguments(x, way.masked)
        found.append([error(way.forward(*args), r["y"])])
        if not forward_only:
            pairs = zip(GRADIENTS, way.backward(dy, *args), strict=True)
            found[-1] += [gradient_error(g, r[name]) for name, g in pairs]
    worst = np.max(found, axis=0).tolist()  # NaN if any is
    return dict(zip(("y", *GRADIENTS), worst, strict=False))


def picture(sweep: dict[str, list[float]], title: str, path: Path) -> None:
    """Error of y against mean / deviation: a line per library, and a cross at the top for a NaN."""
    figure = Figure(figsize=(8.5, 5), layout="constrained")
    ax = figure.add_subplot(xscale="log", yscale="log", title=title)
    for (name, values), marker in zip(sweep.items(), itertools.cycle("o^sDvPX"), strict=False):
        # Flax and Haiku often agree to the digit: thick below, thin above, hollow markers.
        width = {JBN: 3.0, "flax": 4.0}.get(name, 1.3)
        (line,) = ax.plot(RATIOS, values, marker=marker, mfc="none", linewidth=width, label=name)
        nans = RATIOS[np.isnan(values)]
        if nans.size:
            top, color = np.full(nans.shape, 0.97), line.get_color()
            ax.plot(nans, top, "x", c=color, transform=ax.get_xaxis_transform(), label=f"{name}: NaN")
    ax.axhline(Y_TARGET, color="black", linestyle="--", label="target of jbn")
    ax.set(xlabel="mean / standard deviation of x", ylabel="error of y: max |y - r| / max(1, |r|)")
    ax.grid(alpha=0.3)
    figure.legend(loc="outside right upper")
    figure.savefig(path, dpi=110)


def judge(
    inputs: dict[str, dict[str, dict[str, float]]], sweep: dict[str, list[float]]
) -> dict[str, Any]:
    """jbn's targets, its worst figure for each, and whether that meets it; a NaN never does."""
    y = {name: row[JBN]["y"] for name, row in inputs.items()}
    found = {
        "y, every input": (list(y.values()), Y_TARGET),
        "y, constant inputs": ([y[name] for name in y if not INPUTS[name][1]], 0.0),
        "y, sweep": (sweep[JBN], Y_TARGET),
        "gradients": (
            [r[JBN][g] for r in inputs.values() for g in r[JBN] if g != "y"],
            GRADIENT_TARGET,
        ),
    }
    return {name: report.verdict(values, target) for name, (values, target) in found.items()}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures, prints, writes numerics.json and numerics.png; returns what the first of them holds."""
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = report.parser("numerics", __doc__)
    parser.add_argument("--shape", type=int, nargs="+", default=[64, 8, 8, 32], help="channels last")
    options = parser.parse_args(argv)
    console = report.console()

    libraries, skipped = {}, {}
    for name, make in LIBRARIES.items():
        try:
            libraries[name] = make(options.shape)
        except ImportError as missing:
            skipped[name] = str(missing)

    def measure(mean: float, deviation: float, names: Sequence[str], forward_only: bool):
        # The same noise for all inputs, so that only their means and deviations differ.
        rng = np.random.default_rng(options.seed)
        x, dy = (rng.standard_normal(options.shape).astype(np.float32) for _ in range(2))
        x = (mean + deviation * x.astype(np.float64)).astype(np.float32)
        return {name: errors(libraries[name], x, dy, forward_only) for name in names}

    bar = functools.partial(track, console=console, transient=True)
    inputs = {
        name: measure(mean, deviation, list(libraries), forward_only=deviation == 0)
        for name, (mean, deviation) in bar(INPUTS.items(), "inputs")
    }
    lines = [name for name in libraries if name != "jbn"]
    points = [measure(ratio, 1.0, lines, forward_only=True) for ratio in bar(RATIOS, "sweep")]
    sweep = {name: [point[name]["y"] for point in points] for name in lines}
    targets = judge(inputs, sweep)

    y_rows = {name: {k: v["y"] for k, v in row.items()} for name, row in inputs.items()}
    gradient_rows = {
        f"{name}: {g}": {k: v[g] for k, v in inputs[name].items()}
        for name, (_, deviation) in INPUTS.items()
        if deviation
        for g in GRADIENTS
    }
    y_title = f"y of shape {tuple(options.shape)}: max |y - r| / max(1, |r|), r the float64 reference"
    limits = {name: Y_TARGET if deviation else 0.0 for name, (_, deviation) in INPUTS.items()}
    console.print(report.table(y_title, "input", y_rows, limits.__getitem__))
    gradient_title = "gradients: max |g - r| / max |r|"
    console.print(report.table(gradient_title, "input", gradient_rows, lambda _: GRADIENT_TARGET))
    for name, why in skipped.items():
        console.print(f"{name} skipped: {why}")
    report.print_verdicts(console, targets)

    figures = {
        "shape": options.shape,
        "seed": options.seed,
        "inputs": inputs,
        "sweep": {"mean / deviation": RATIOS.tolist(), **sweep},
        "skipped": skipped,
        "targets": targets,
    }
    results = report.write("numerics", argv, options.out, figures)
    title = f"training mode, float32 input of shape {tuple(options.shape)}"
    picture(sweep, title, options.out / "numerics.png")
    return results
