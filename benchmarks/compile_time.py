"""What does batch norm cost the compiler? Trace, lower and compile a training step of ResNet-50.

    python -m benchmarks compile_time

The step is the loss, its gradients and SGD with momentum; its 53 norms are none (the identity),
flax.linen's or jbn's, in turn, with JAX's caches cleared before each and without the persistent cache.
Seconds of each stage, and the size of the program before and after XLA's optimizations. The images are
small: the compiler hardly looks at sizes.
"""

import functools
import gc
import itertools
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from benchmarks.shared import networks, report, timing

STAGES: tuple[str, ...] = ("trace", "lower", "compile")
STABLEHLO = re.compile(r'^\s*(?:%[^=]+ = )?"?stablehlo\.\w+', re.MULTILINE)
HLO = re.compile(r"^\s+(?:ROOT )?%?[\w.-]+ = ", re.MULTILINE)


def program_size(stablehlo: str, hlo: str) -> dict[str, int]:
    """Instructions before and after XLA's optimizations."""
    return {
        "StableHLO instructions": len(STABLEHLO.findall(stablehlo)),
        "optimized instructions": len(HLO.findall(hlo)),
    }


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
    seconds = (b - a for a, b in itertools.pairwise(marks))
    return dict(zip(STAGES, seconds, strict=True)), program_size(
        lowered.as_text(), compiled.as_text() or ""
    )


def measure(
    made: Mapping[str, nn.Module], shape: tuple[int, ...], repeats: int
) -> dict[str, dict[str, Any]]:
    """By norm: the seconds of every repetition by stage, the same by Flax's, and the sizes."""
    given = {name: networks.abstract(model, shape) for name, model in made.items()}
    found: dict[str, dict[str, Any]] = {name: {"seconds": {s: [] for s in STAGES}} for name in made}

    def total(name):
        taken, found[name]["size"] = stages(made[name], given[name])
        for stage, seconds in taken.items():
            found[name]["seconds"][stage].append(seconds)
        return sum(taken.values())

    # What the first tracing and lowering of a process set up belongs to no norm.
    small = networks.Stack(networks.NORMS["flax"])
    stages(small, networks.abstract(small, (2, 8, 8, 1)))
    totals = timing.rounds({name: functools.partial(total, name) for name in made}, repeats)
    for name, row in found.items():
        row["seconds"]["total"] = totals[name]
    for row in found.values():
        row["by flax"] = {
            stage: np.divide(seconds, found["flax"]["seconds"][stage]).tolist()
            for stage, seconds in row["seconds"].items()
        }
    return found


def tables(figures: Mapping[str, Any], title: str) -> list[str]:
    """Seconds by Flax's and their range over the repetitions, and the sizes."""
    seconds = {
        name: {stage: report.span(ratios) for stage, ratios in row["by flax"].items()}
        for name, row in figures.items()
    }
    sizes = {
        name: {what: f"{value:,}" for what, value in row["size"].items()}
        for name, row in figures.items()
    }
    return [
        report.table(title, "norm", seconds),
        report.table("The program before and after XLA's optimizations", "norm", sizes),
    ]


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Measures, prints, writes compile_time.json and .md; returns what the first of them holds."""
    parser = report.parser("compile_time", __doc__)
    parser.add_argument("--repeats", type=report.positive, default=5)
    parser.add_argument(
        "--size", type=report.positive, default=64, help="height and width of the images"
    )
    parser.add_argument("--batch", type=report.positive, default=4)
    parser.add_argument("--small", action="store_true", help="a small CNN instead of ResNet-50")
    options = parser.parse_args(argv)
    jax.config.update("jax_enable_compilation_cache", False)
    resnet = functools.partial(networks.resnet50, classes=1000, small_images=False)
    made: dict[str, nn.Module] = {
        name: networks.Stack(norm) if options.small else resnet(norm=norm)
        for name, norm in networks.NORMS.items()
    }
    shape = (options.batch, options.size, options.size, 3)
    found = measure(made, shape, options.repeats)
    network = "the small CNN" if options.small else "ResNet-50"
    title = f"A training step of {network}, images {shape}: the time of each stage by that with Flax's"
    shown = tables(found, title)
    return report.write("compile_time", argv, options.out, {"figures": found}, shown)
