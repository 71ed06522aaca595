"""What does batch norm cost the compiler? Trace, lower and compile a training step of ResNet-50.

    python -m benchmarks compile_time

The step is the loss, its gradients and SGD with momentum; its 53 norms are none (the identity),
flax.linen's or jbn's, in turn, with JAX's caches cleared before each and without the persistent cache.
Prints the median seconds of each stage and the sizes of the program before and after XLA's
optimizations. The images are small: the compiler hardly looks at sizes.
"""

import functools
import gc
import itertools
import re
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from matplotlib.figure import Figure

from benchmarks import networks, report, timing
from examples.resnet_model import resnet18, resnet50

STAGES = ("trace", "lower", "compile")
TARGET = 1.0
STABLEHLO = re.compile(r'^\s*(?:%[^=]+ = )?"?stablehlo\.\w+', re.MULTILINE)
HLO = re.compile(r"^\s+(?:ROOT )?%?[\w.-]+ = ", re.MULTILINE)


def program_size(stablehlo: str, hlo: str) -> dict[str, int]:
    """Instructions and bytes of the text before and after XLA's optimizations."""
    return {
        "StableHLO instructions": len(STABLEHLO.findall(stablehlo)),
        "StableHLO bytes": len(stablehlo.encode()),
        "optimized instructions": len(HLO.findall(hlo)),
        "optimized bytes": len(hlo.encode()),
    }


def arguments(model: nn.Module, shape: tuple[int, ...]) -> tuple:
    """Shapes and dtypes of a step's arguments: nothing is computed."""
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    labels = jax.ShapeDtypeStruct(shape[:1], jnp.int32)
    state = jax.eval_shape(lambda x: networks.create_state(model, x, 0), images)
    return state, images, labels


def stages(model: nn.Module, given: tuple) -> tuple[dict[str, float], dict[str, int]]:
    """Seconds of each stage, without anything cached, and the size of the program."""
    jax.clear_caches()
    gc.collect()
    marks = [time.perf_counter()]
    traced = jax.jit(networks.step_of(model), donate_argnums=0).trace(*given)
    marks.append(time.perf_counter())
    lowered = traced.lower()
    marks.append(time.perf_counter())
    compiled = lowered.compile()
    marks.append(time.perf_counter())
    taken = dict(zip(STAGES, (b - a for a, b in itertools.pairwise(marks)), strict=True))
    seconds: dict[str, float] = {**taken}
    return seconds, program_size(lowered.as_text(), compiled.as_text() or "")


def measure(
    made: dict[str, nn.Module], shape: tuple[int, ...], repeats: int
) -> dict[str, dict[str, Any]]:
    """By norm: the seconds of every repetition by stage, their medians, and the sizes."""
    given = {name: arguments(model, shape) for name, model in made.items()}
    found: dict[str, dict[str, Any]] = {
        name: {"seconds": {stage: [] for stage in STAGES}} for name in made
    }

    def total(name):
        taken, found[name]["size"] = stages(made[name], given[name])
        for stage, seconds in taken.items():
            found[name]["seconds"][stage].append(seconds)
        return sum(taken.values())

    enabled = jax.config.jax_enable_compilation_cache  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        # What the first tracing and lowering of a process set up belongs to no norm.
        small = networks.SmallCNN(networks.NORMS["flax"])
        stages(small, arguments(small, (2, 8, 8, 1)))
        totals = timing.rounds({name: functools.partial(total, name) for name in made}, repeats)
    finally:
        jax.config.update("jax_enable_compilation_cache", enabled)
    for name, row in found.items():
        row["seconds"]["total"] = totals[name]
        row["medians"] = {stage: statistics.median(v) for stage, v in row["seconds"].items()}
    return found


def judge(figures: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """jbn's total against flax's, the median over the repetitions."""
    totals = {name: row["seconds"]["total"] for name, row in figures.items()}
    ratio = timing.ratio(totals, "jbn", "flax")
    return {"trace, lower and compile: jbn / flax": report.verdict([ratio], TARGET)}


def picture(figures: dict[str, dict[str, Any]], title: str, path: Path) -> None:
    """Seconds by stage, one bar upon another, and the optimized program's instructions."""
    figure = Figure(figsize=(9.4, 3.3), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    names = list(figures)
    start = [0.0] * len(names)
    for stage in STAGES:
        values = [figures[name]["medians"][stage] for name in names]
        left.barh(names, values, left=start, label=stage)
        start = [a + b for a, b in zip(start, values, strict=True)]
    for i, total in enumerate(start):
        left.annotate(f"{total:.1f}", (total, i), (4, 0), textcoords="offset points", va="center")
    left.invert_yaxis()
    left.margins(x=0.15)
    left.set(xlabel="seconds", title=title)
    left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3, frameon=False)
    sizes = {name: row["size"]["optimized instructions"] for name, row in figures.items()}
    report.bars(right, sizes, {name: f"{value:,}" for name, value in sizes.items()})
    right.set(xlabel="instructions of the optimized program")
    figure.savefig(path)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures, prints, writes compile_time.json and .png; returns what the first of them holds."""
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = report.parser("compile_time", __doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--size", type=int, default=64, help="height and width of the images")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--quick", action="store_true", help="ResNet-18, once: to see that it runs")
    options = parser.parse_args(argv)
    make = functools.partial(resnet50, classes=1000, small_images=False)
    network = "ResNet-50"
    if options.quick:
        make, network = functools.partial(resnet18, features=4), "ResNet-18"
        options.repeats, options.size = 1, 16
    shape = (options.batch, options.size, options.size, 3)
    console = report.console()
    made: dict[str, nn.Module] = {name: make(norm=norm) for name, norm in networks.NORMS.items()}
    with console.status("compiling"):
        figures = measure(made, shape, options.repeats)
    title = f"a training step of {network}, images {shape}"
    rows = {
        name: {f"{stage}, s": f"{value:.2f}" for stage, value in row["medians"].items()}
        for name, row in figures.items()
    }
    console.print(report.table(f"{title}: medians of {options.repeats}", "norm", rows))
    rows = {
        name: {what: f"{value:,}" for what, value in row["size"].items()}
        for name, row in figures.items()
    }
    console.print(report.table("the program before and after XLA's optimizations", "norm", rows))
    targets = judge(figures)
    report.print_verdicts(console, targets)
    settings = {"network": network, "images": shape, "repeats": options.repeats}
    results = {"settings": settings, "figures": figures, "targets": targets}
    results = report.write("compile_time", argv, options.out, results)
    picture(figures, f"a training step of {network}", options.out / "compile_time.png")
    return results


if __name__ == "__main__":
    main()
