"""What does exactness cost? A step of jbn against the same code with E[x^2] - E[x]^2, and Flax's layer.

The fast but inexact variance is put into jbn for this measurement alone: everything else, the backward
pass too, is the same program. Steps run inside one compiled loop, forward and backward, y and dx being
the next step's x and dy, interleaved between the variants.
"""

import functools
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import track

import jbn
from benchmarks import report
from jbn.ops import xla

SHAPES = ((32, 56, 56, 64), (32, 28, 28, 128), (32, 14, 14, 256), (32, 7, 7, 512), (4096, 256))
MEANS = (0.0, 10.0)
VARIANTS = ("inexact", "jbn", "flax")
STEPS = 20
TARGET = 1.10
TOLERANCE = 1e-4


def inexact_moments(x, weights, count, axes):
    """E[x] and E[x^2] - E[x]^2, whatever the data."""
    del weights
    n = count.astype(x.dtype)
    mean = jnp.sum(x, axes) / n
    var = jnp.sum(x * x, axes) / n - mean * mean
    return mean, jnp.zeros_like(mean), jnp.maximum(var, 0)


@contextmanager
def statistics_of(variant: str) -> Iterator[None]:
    """Replaces the statistics while a program is traced."""
    exact = xla.moments
    xla.moments = inexact_moments if variant == "inexact" else exact
    jax.clear_caches()
    try:
        yield
    finally:
        xla.moments = exact
        jax.clear_caches()


def layer(variant: str):
    """(x, params, batch_stats) -> (y, batch_stats)."""
    if variant != "flax":
        return functools.partial(jbn.batch_norm, train=True)
    module = flax.linen.BatchNorm(use_running_average=False)

    def apply(x, params, batch_stats):
        variables = {"params": params, "batch_stats": batch_stats}
        y, updated = module.apply(variables, x, mutable=["batch_stats"])
        return y, updated["batch_stats"]

    return apply


def program(variant: str, arguments: tuple) -> Any:
    """The compiled loop: (steps, params, batch_stats, x, dy) -> the last of all of them."""
    apply = layer(variant)

    def run(steps, params, batch_stats, x, dy):
        def body(_, carry):
            batch_stats, x, dy, _ = carry
            y, vjp, batch_stats = jax.vjp(
                lambda p, x: apply(x, p, batch_stats), params, x, has_aux=True
            )
            dparams, dx = vjp(dy)
            return batch_stats, y, dx, dparams

        return jax.lax.fori_loop(0, steps, body, (batch_stats, x, dy, params))

    with statistics_of(variant):
        return jax.jit(run).lower(np.int32(STEPS), *arguments).compile()


def checked(compiled: Any, arguments: tuple, mean: float) -> None:
    """Refuses to time what is wrong; at a mean of 10 deviations the fast variance still is not."""
    _, y, _, _ = compiled(np.int32(1), *arguments)
    x = np.asarray(arguments[2], np.float64)
    axes = tuple(range(x.ndim - 1))
    r = (x - x.mean(axes)) / np.sqrt(x.var(axes) + 1e-5) + mean
    error = float(np.max(np.abs(y - r)))
    if not error <= TOLERANCE:
        raise RuntimeError(f"wrong by {error:.1e}: nothing to time")


def milliseconds(compiled: Any, arguments: tuple) -> float:
    """One step, of many in one program."""
    start = time.perf_counter()
    jax.block_until_ready(compiled(np.int32(STEPS), *arguments))
    return (time.perf_counter() - start) / STEPS * 1e3


def measure(shape: Sequence[int], mean: float, repeats: int, seed: int) -> dict[str, float]:
    """Medians of the milliseconds per step, and of the ratios to the first variant."""
    rng = np.random.default_rng(seed)
    x, dy = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for _ in range(2))
    params, batch_stats = jbn.init(shape[-1])
    params["bias"] = params["bias"] + mean  # so that the next step's x is like this one's
    arguments = params, batch_stats, x + mean, dy
    compiled = {variant: program(variant, arguments) for variant in VARIANTS}
    for run in compiled.values():
        checked(run, arguments, mean)
    times: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for _ in range(repeats):
        for variant, run in compiled.items():
            times[variant].append(milliseconds(run, arguments))
    ratio = [a / b for a, b in zip(times["jbn"], times["inexact"], strict=True)]
    against_flax = [a / b for a, b in zip(times["flax"], times["jbn"], strict=True)]
    return {
        "jbn / inexact": statistics.median(ratio),
        "flax / jbn": statistics.median(against_flax),
        **{f"{variant}, ms": statistics.median(values) for variant, values in times.items()},
    }


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures, prints, writes exactness.json; returns what it holds."""
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = report.parser("exactness", __doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--shape", type=int, nargs="+", help="channels last; default: five of them")
    options = parser.parse_args(argv)
    console = report.console()
    shapes = (tuple(options.shape),) if options.shape else SHAPES
    cases = [(mean, shape) for mean in MEANS for shape in shapes]
    figures = {
        f"{shape}, N({mean:g}, 1)": measure(shape, mean, options.repeats, options.seed)
        for mean, shape in track(cases, "layers", console=console, transient=True)
    }
    rows = {name: {k: f"{v:.3g}" for k, v in row.items()} for name, row in figures.items()}
    console.print(report.table("one step, forward and backward, in a loop", "input", rows))
    scaled = [row["jbn / inexact"] for name, row in figures.items() if "N(0, 1)" in name]
    targets = {
        "jbn / inexact on well scaled data, geometric mean": report.verdict(
            [statistics.geometric_mean(scaled)], TARGET
        ),
        "jbn / inexact on well scaled data, worst shape": report.verdict(scaled, TARGET),
    }
    report.print_verdicts(console, targets)
    return report.write("exactness", argv, options.out, {"figures": figures, "targets": targets})


if __name__ == "__main__":
    main()
