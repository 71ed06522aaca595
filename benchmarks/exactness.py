"""What does exactness cost? A step with exact statistics against the same step with E[x^2] - E[x]^2.

    python -m benchmarks exactness

"exact" and "inexact" are one composition of jbn's public functions, with `jbn.moments` and with the
usual fast formula in its place. Beside them `jbn.batch_norm`, which does what "exact" does in one
operation, and Flax's layer as it comes and with its two-pass variance. Steps inside one compiled loop,
forward and backward, all in turn, on well-scaled data and where the mean is ten deviations.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

import jbn
from benchmarks.shared import case, processes, report, steps, timing
from benchmarks.shared.adapters import ADAPTERS, Layer, by_name, trees
from benchmarks.shared.layer_times import measure
from benchmarks.shared.reference import EPSILON

SHAPES = ((32, 56, 56, 64), (32, 28, 28, 128), (32, 14, 14, 256), (32, 7, 7, 512), (4096, 256))
MEANS = (0.0, 10.0)
MODE = "forward+backward"
BASE = "inexact"


def fast_moments(x: Any) -> jbn.Moments:
    """E[x] and E[x^2] - E[x]^2, whatever the data."""
    axes = tuple(range(x.ndim - 1))
    mean = jnp.mean(x, axes)
    var = jnp.maximum(jnp.mean(x * x, axes) - mean * mean, 0)
    return jbn.Moments(mean, var)


def composed(moments: Callable[[Any], jbn.Moments], made: case.Case) -> Layer:
    """Batch norm of the public pieces, with any function for the moments."""

    def train(params, state, x):
        m = moments(x)
        y = jbn.normalize(x, m, params, epsilon=EPSILON)
        return y, jbn.update_running(state, m, momentum=case.MOMENTUM)

    def infer(params, state, x):
        return jbn.normalize(x, jbn.Moments(**state), params, epsilon=EPSILON)

    return Layer(*trees(made), train, infer, by_name)


VARIANTS = {
    BASE: functools.partial(composed, fast_moments),
    "exact": functools.partial(composed, jbn.moments),
    **{name: ADAPTERS[name] for name in ("jbn", "flax.linen", "flax.linen, two-pass")},
}


def times(
    shapes: Sequence[Sequence[int]], rounds: int, seed: int, means: Sequence[float] = MEANS
) -> dict[str, Any]:
    """By input and layer: the time of each variant by that of the inexact one.

    Raises:
        WrongResultError: a result is not what it is to be; on these data the fast formula's still is.
    """
    loops = {name: functools.partial(steps.loop, adapter) for name, adapter in VARIANTS.items()}
    found = {}
    for mean in means:
        rows = found[f"N({mean:g}, 1)"] = {}
        for shape in report.progress(shapes, f"mean {mean:g}"):
            made = case.make(shape, -1, "float32", seed, mean)
            measured = measure("loop", loops, made, MODE, case.expected(made)[MODE], rounds)
            for name, why in measured.refused.items():
                raise case.WrongResultError(f"{name}, {made.name}, mean {mean:g}: {why}")
            rows[made.name] = {name: timing.ratio(measured.times, name, BASE) for name in VARIANTS}
    return found


def table(data: str, rows: dict[str, dict[str, list[float]]]) -> str:
    """Rows layers, and their geometric mean in every run."""
    if len(rows) > 1:
        rows = {**rows, "geometric mean": report.geometric_means(rows)}
    cells = {
        layer: {name: report.span(runs) for name, runs in row.items() if name != BASE}
        for layer, row in rows.items()
    }
    title = f"Channels from {data}: the time of a step by that of the inexact one"
    return report.table(title, "layer", cells)


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Measures, prints, writes exactness.json and .md; returns what the first of them holds."""
    parser = report.parser("exactness", __doc__)
    parser.add_argument("--rounds", type=report.positive, default=9)
    parser.add_argument("--shape", type=report.positive, nargs="+", help="channels last; default: five")
    processes.add_flag(parser, 3)
    options = parser.parse_args(argv)
    shapes = (tuple(options.shape),) if options.shape else SHAPES
    found = processes.repeated(
        "exactness", argv, options.runs, lambda: times(shapes, options.rounds, options.seed)
    )
    tables = [table(data, rows) for data, rows in found.items()]
    return report.write("exactness", argv, options.out, {"figures": found}, tables)
