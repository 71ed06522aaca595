"""What layers keep for the backward pass, what memory compiled gradients need, and how fast they are.

    python -m benchmarks memory

Stacks of conv 3x3, batch norm and activation, and ResNet-18: flax.linen's norm, jbn's, jbn's in place
and jbn's under `jax.checkpoint` with `jbn.remat_policy`. Prints

- what JAX keeps between the forward and the backward pass (residuals), on any device, before XLA;
- the `temp_size_in_bytes` of XLA's `memory_analysis()` of the compiled gradient, exact and repeatable,
  compiled as XLA:CPU does by itself and with two sets of flags (compiled_memory.py);
- the largest batch whose compiled gradient fits into --budget-mb, arguments and results included;
- the milliseconds of a gradient, all in turn, after loss, running statistics and gradients have been
  compared with flax's;
- the residuals of one layer, float32 and bfloat16.
"""

import functools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen
import jax
from matplotlib.figure import Figure
from rich.progress import track

import jbn
from benchmarks import networks, report, timing
from benchmarks.compiled_memory import (
    COMPILERS,
    IMAGES,
    RELU_STACK,
    RESNET,
    STACK,
    arguments,
    cases,
    measure,
    residual_bytes,
)
from benchmarks.peers import linen

BATCHES = {STACK: 64, RELU_STACK: 64, RESNET: 32}
MIB = 2**20
FITTED = "sequential, barriers kept"
MEMORY_TARGETS = {
    (STACK, "jbn, in place"): 0.5,
    (RELU_STACK, "jbn, remat_policy"): 0.6,
    (RESNET, "jbn, remat_policy per block"): 0.6,
    (RESNET, "jbn, remat_policy"): 0.6,
}
TIME_TARGETS = {
    (STACK, "jbn, in place"): 1.0,
    (RELU_STACK, "jbn, remat_policy"): 1.05,
    (RESNET, "jbn, remat_policy per block"): 1.05,
    (RESNET, "jbn, remat_policy"): 1.05,
}

Figures = dict[str, dict[str, dict[str, Any]]]


def one_layer(shape: tuple[int, ...]) -> dict[str, dict[str, int]]:
    """By dtype: the residuals of one layer with flax's norm and jbn's, and the bytes of x."""
    found = {}
    for dtype in ("float32", "bfloat16"):
        x = jax.ShapeDtypeStruct(shape, dtype)
        params, batch_stats = jbn.init(shape[-1])
        layer = flax.linen.BatchNorm(use_running_average=False, dtype=dtype)

        def flax_layer(primals, batch_stats, layer=layer):
            x, params = primals
            # x + 0: what the layer before has made is no argument, and counts where it is kept.
            return linen(layer, x + 0, params, batch_stats)

        def own(primals, batch_stats):
            x, params = primals
            return jbn.batch_norm(x + 0, params, batch_stats, train=True)

        found[dtype] = {
            name: residual_bytes(f, (x, params), batch_stats)
            for name, f in {"flax": flax_layer, "jbn": own}.items()
        }
        found[dtype]["x"] = x.size * x.dtype.itemsize
    return found


def residuals(quick: bool, batches: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """By network and case: what JAX keeps of the forward pass of the whole network."""
    found: dict[str, dict[str, int]] = {}
    for network, rows in cases(quick).items():
        shape = (batches[network], *IMAGES[network])
        found[network] = {
            name: residual_bytes(case.loss(), *arguments(case.model, shape))
            for name, case in rows.items()
        }
    return found


def times(
    quick: bool, batches: Mapping[str, int], rounds: int, seed: int
) -> dict[str, dict[str, list[float]]]:
    """By network and case: the seconds of a gradient in every round, all cases in turn.

    Raises:
        RuntimeError: a case's loss, running statistics or gradient are not flax's.
    """
    found = {}
    for network, rows in cases(quick).items():
        images, labels = networks.data((batches[network], *IMAGES[network]), seed)
        wanted, timers = None, {}
        for name, case in rows.items():
            state = networks.create_state(case.model, images[:1], seed)
            given = state.params, state.batch_stats, images, labels
            gradient = jax.jit(case.gradient())
            result = jax.device_get(gradient(*given))
            wanted = result if wanted is None else wanted
            networks.require_equal(f"{network}, {name}", result, wanted)
            timers[name] = functools.partial(timing.elapsed, gradient, *given)
        found[network] = timing.rounds(timers, rounds)
    return found


def gather(
    kept: Mapping[str, Mapping[str, int]],
    compiled: Mapping[str, Figures],
    seconds: Mapping[str, dict[str, list[float]]],
) -> Figures:
    """By network and case: all that was measured, with ratios to flax's norm without anything."""
    found: Figures = {}
    for network, rows in kept.items():
        found[network] = {}
        for name in rows:
            sizes = {c: compiled[c][network][name]["temp"] for c in compiled}
            flax = {c: compiled[c][network]["flax"]["temp"] for c in compiled}
            found[network][name] = {
                "residuals": rows[name],
                "temp": sizes,
                **timing.summary(seconds[network][name]),
                "against flax": {
                    "residuals": rows[name] / rows["flax"],
                    **{c: sizes[c] / flax[c] for c in compiled},
                    "time": timing.ratio(seconds[network], name, "flax"),
                },
                "largest batch": compiled[FITTED][network][name]["largest batch"],
            }
    return found


def judge(figures: Figures, layer: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    """jbn's targets and what was found; the compiler's default settings have none."""
    found = {}
    for (network, name), target in MEMORY_TARGETS.items():
        against = figures[network][name]["against flax"]
        for what in ("residuals", *list(COMPILERS)[1:]):
            label = what if what == "residuals" else f"temp, {what}"
            found[f"{network}, {name} / flax: {label}"] = report.verdict([against[what]], target)
    for (network, name), target in TIME_TARGETS.items():
        ratio = figures[network][name]["against flax"]["time"]
        found[f"{network}, {name} / flax: time"] = report.verdict([ratio], target)
    for dtype, row in layer.items():
        ratio = row["jbn"] / row["flax"]
        found[f"one layer, {dtype}, jbn / flax: residuals"] = report.verdict([ratio], 1.0)
    return found


def cells(row: Mapping[str, Any], budget: float) -> dict[str, str]:
    """The cells of a case."""
    against = row["against flax"]

    def text(value, ratio):
        return f"{value:.4g} ({ratio:.2f})"

    return {
        "residuals": text(row["residuals"] / MIB, against["residuals"]),
        **{c: text(size / MIB, against[c]) for c, size in row["temp"].items()},
        "ms": text(row["ms"], against["time"]),
        f"batch in {budget:g} MiB": str(row["largest batch"]),
    }


def picture(figures: Figures, path: Path) -> None:
    """Residuals and compiled memory of each case, a row of panels for each network."""
    rows = {"residuals": "kept by JAX, MiB"}
    rows |= {FITTED: f"compiled ({FITTED}), MiB"}
    figure = Figure(figsize=(10.5, 2.1 * len(figures)), dpi=100, layout="constrained")
    panels = figure.subplots(len(figures), len(rows), squeeze=False)
    for line, (network, found) in zip(panels, figures.items(), strict=True):
        for axes, (what, label) in zip(line, rows.items(), strict=True):
            sizes = {
                name: (row["temp"].get(what) or row["residuals"]) / MIB for name, row in found.items()
            }
            texts = {
                name: f"{size:.3g} ({found[name]['against flax'][what]:.2f})"
                for name, size in sizes.items()
            }
            report.bars(axes, sizes, texts)
            axes.set(title=network, xlabel=label)
            if what != "residuals":
                axes.set_yticklabels([])
    figure.savefig(path)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures, prints, writes memory.json and memory.png; returns what the first of them holds."""
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = report.parser("memory", __doc__)
    parser.add_argument("--budget-mb", type=float, default=1024, help="MiB, for the largest batch")
    parser.add_argument("--rounds", type=int, default=7, help="how often each gradient is timed")
    parser.add_argument("--quick", action="store_true", help="small networks: to see that it runs")
    options = parser.parse_args(argv)
    batches = dict.fromkeys(BATCHES, 4) if options.quick else BATCHES
    rounds = 2 if options.quick else options.rounds
    console = report.console()
    budget = int(options.budget_mb * MIB)
    settings = {"quick": options.quick, "batches": batches}
    compiled = {
        name: measure(name, {**settings, "budget": budget if name == FITTED else None})
        for name in track(COMPILERS, "compiling", console=console, transient=True)
    }
    layer = one_layer((64, 32, 32, 32))
    with console.status("timing"):
        seconds = times(options.quick, batches, rounds, options.seed)
    figures = gather(residuals(options.quick, batches), compiled, seconds)

    for network, rows in figures.items():
        title = (
            f"{network}, images {(batches[network], *IMAGES[network])}: MiB kept by JAX; temp MiB of "
            "the compiled gradient, by compiler settings; milliseconds (in parentheses: of flax's)"
        )
        shown = {name: cells(row, options.budget_mb) for name, row in rows.items()}
        console.print(report.table(title, "norm", shown))
    shown = {
        dtype: {name: f"{size / MIB:.4g} ({size / row['x']:.2f} x)" for name, size in row.items()}
        for dtype, row in layer.items()
    }
    console.print(report.table("residuals of one layer on (64, 32, 32, 32), MiB", "dtype", shown))
    targets = judge(figures, layer)
    report.print_verdicts(console, targets)
    results = {
        "settings": {"batches": batches, "budget MiB": options.budget_mb, "compilers": COMPILERS},
        "figures": figures,
        "compiled": compiled,
        "one layer": layer,
        "targets": targets,
    }
    results = report.write("memory", argv, options.out, results)
    picture(figures, options.out / "memory.png")
    return results


if __name__ == "__main__":
    main()
