"""How far is y from the exact result? jbn and its peers against float64, forward and backward.

    python -m benchmarks numerics

Every library normalizes the same float32 input in training mode with epsilon 1e-5, scale 1 and bias 0;
the reference is float64 arithmetic on that same input. Not timed.
"""

import functools
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from benchmarks.shared import report, steps
from benchmarks.shared.adapters import ADAPTERS
from benchmarks.shared.case import Case, Values, errors, expected

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
PEERS = ("flax.linen", "flax.linen, two-pass", "haiku", "equinox", "keras", "torch", "torch, NCHW")
# Each the worst of so many calls: jbn's three forms, with jit and without, with a mask and without.
JBN = "jbn, worst of 12"
WAYS: dict[str, list[tuple[steps.Way, bool]]] = {
    JBN: [
        (functools.partial(steps.call, ADAPTERS[name], jit=jit), masked)
        for name in ("jbn", "jbn.linen", "jbn.nnx")
        for jit in (True, False)
        for masked in (False, True)
    ],
    **{name: [(steps.CALLS[name], False)] for name in PEERS},
}


def make(shape: Sequence[int], mean: float, deviation: float, seed: int) -> Case:
    """The same noise for all inputs, so that only their means and deviations differ."""
    rng = np.random.default_rng(seed)
    x, dy = (rng.standard_normal(shape).astype(np.float32) for _ in range(2))
    zero = np.zeros(shape[-1], np.float32)
    x = mean + deviation * x.astype(np.float64)
    return Case(
        -1, Values(zero + 1, zero, zero, zero + 1), jnp.asarray(x, jnp.float32), jnp.asarray(dy)
    )


def measure(case: Case, names: Sequence[str], mode: str) -> dict[str, dict[str, float]]:
    """By library: the largest error of each result; NaN if any is."""
    wanted = expected(case)[mode]
    ones = jnp.ones((*case.x.shape[:-1], 1), bool)
    found = {}
    for name in names:
        each = []
        for way, masked in WAYS[name]:
            run, read = way(case._replace(mask=ones) if masked else case, mode)
            each.append(errors(read(run()), wanted))
        found[name] = {result: float(np.max([e[result] for e in each])) for result in wanted}
    return found


def picture(sweep: Mapping[str, Sequence[float]], title: str, path: Path) -> None:
    """Error of y against mean / deviation: a line per library, and a cross at the top for a NaN."""
    figure = Figure(figsize=(8.5, 5), layout="constrained")
    ax = figure.add_subplot(xscale="log", yscale="log", title=title)
    for (name, values), marker in zip(sweep.items(), itertools.cycle("o^sDvPX<"), strict=False):
        # Flax and Haiku often agree to the digit: thick below, thin above, hollow markers.
        width = {JBN: 3.0, "flax.linen": 4.0}.get(name, 1.3)
        (line,) = ax.plot(RATIOS, values, marker=marker, mfc="none", linewidth=width, label=name)
        nans = RATIOS[np.isnan(values)]
        if nans.size:
            top, color = np.full(nans.shape, 0.97), line.get_color()
            ax.plot(nans, top, "x", c=color, transform=ax.get_xaxis_transform(), label=f"{name}: NaN")
    ax.set(xlabel="mean / standard deviation of x", ylabel="error of y: max |y - r| / max(1, |r|)")
    ax.grid(alpha=0.3)
    figure.legend(loc="outside right upper")
    figure.savefig(path, dpi=110)


def tables(inputs: Mapping[str, Any], shape: Sequence[int]) -> list[str]:
    """The errors of y, and the largest of the three gradients' where there is a deviation."""

    def rows(results: Sequence[str], names: Sequence[str]) -> report.Rows:
        return {
            name: {
                library: report.scientific(float(np.max([own[result] for result in results])))
                for library, own in inputs[name].items()
            }
            for name in names
        }

    varying = [name for name, (_, deviation) in INPUTS.items() if deviation]
    y_title = f"y, max |y - r| / max(1, |r|), x of shape {tuple(shape)}"
    gradient_title = "The worst of dx, dscale and dbias, max |g - r| / max |r|"
    return [
        report.table(y_title, "input", rows(["y"], list(INPUTS))),
        report.table(gradient_title, "input", rows(["dx", "dscale", "dbias"], varying)),
    ]


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Measures, prints, writes numerics.json, .md and .png; returns what the first of them holds."""
    parser = report.parser("numerics", __doc__)
    parser.add_argument("--shape", type=int, nargs="+", default=[64, 8, 8, 32], help="channels last")
    options = parser.parse_args(argv)
    names, skipped = steps.available(WAYS)

    inputs = {}
    for name, (mean, deviation) in report.progress(INPUTS.items(), "inputs"):
        case = make(options.shape, mean, deviation, options.seed)
        inputs[name] = measure(case, names, "forward+backward" if deviation else "forward")
    points = [
        measure(make(options.shape, ratio, 1.0, options.seed), names, "forward")
        for ratio in report.progress(RATIOS, "sweep")
    ]
    sweep = {name: [point[name]["y"] for point in points] for name in names}
    figures = {
        "shape": options.shape,
        "seed": options.seed,
        "inputs": inputs,
        "sweep": {"mean / deviation": RATIOS.tolist(), **sweep},
        "skipped": skipped,
    }
    results = report.write("numerics", argv, options.out, figures, tables(inputs, options.shape))
    title = f"training mode, float32 input of shape {tuple(options.shape)}"
    picture(sweep, title, options.out / "numerics.png")
    return results
