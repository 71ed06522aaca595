"""How fast is one batch norm layer? Against every peer, and against the limit of the machine.

    python -m benchmarks layer
    python -m benchmarks layer --form call --mode forward --shape 32 14 14 1024

jbn, Flax's Linen (twice: what its two columns differ by is noise) and NNX, Haiku, Equinox, Keras on JAX
and PyTorch, in turn in one process, over and over, and all of it again in other processes. Every result
is compared with float64 before it is timed, and a wrong one is not timed. Two forms: "loop", steps
inside one compiled loop whose y and dx are the next step's x and dy, with a copy in the same rounds as
the limit; and "call", one compiled call at a time, PyTorch's too. The data are well scaled; `exactness`
has others.
"""

import argparse
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from benchmarks.layer import bandwidth, figures
from benchmarks.layer.figures import BASE
from benchmarks.shared import case, processes, report, steps, timing
from benchmarks.shared.layer_times import FORMS, measure

LAYERS = (  # ResNet-50 at batch 32, two of MLPs, and channels first
    ((32, 56, 56, 64), -1),
    ((32, 56, 56, 256), -1),
    ((32, 28, 28, 512), -1),
    ((32, 14, 14, 1024), -1),
    ((32, 7, 7, 2048), -1),
    ((256, 256), -1),
    ((4096, 1024), -1),
    ((32, 64, 56, 56), 1),
)
# glibc gives large freed blocks back to the system, which maps and zeroes them anew at the next call,
# or does not: by the luck of the heap one of two calls of one program takes twice as long. One arena,
# because those of threads, on which JAX allocates and PyTorch does not, always give large blocks back.
HUGE = str(2**40)
KEEP_PAGES = {
    "MALLOC_TRIM_THRESHOLD_": HUGE,
    "MALLOC_MMAP_THRESHOLD_": HUGE,
    "MALLOC_TOP_PAD_": str(2**28),
    "MALLOC_ARENA_MAX": "1",
}


def options(argv: Sequence[str]) -> argparse.Namespace:
    """The flags, checked."""
    parser = report.parser("layer", __doc__)
    parser.add_argument("--shape", type=report.positive, nargs="+", help="one layer of this shape")
    parser.add_argument("--axis", type=int, choices=(-1, 1), default=-1, help="of its channels")
    parser.add_argument("--dtype", choices=case.TOLERANCES, nargs="+", default=["float32"])
    parser.add_argument("--mode", choices=case.MODES, nargs="+", default=case.MODES)
    parser.add_argument("--form", choices=FORMS, nargs="+", default=list(FORMS))
    peers = [name for name in figures.LIBRARIES if name not in ("jbn", BASE)]
    parser.add_argument("--peers", choices=peers, nargs="*", default=peers, help=f"beside {BASE}")
    parser.add_argument("--rounds", type=report.positive, default=7)
    processes.add_flag(parser, 3)
    chosen = parser.parse_args(argv)
    if chosen.shape and len(chosen.shape) < 2:
        parser.error("argument --shape: at least two sizes are needed")
    chosen.layers = ((tuple(chosen.shape), chosen.axis),) if chosen.shape else LAYERS
    return chosen


def jobs(chosen: argparse.Namespace) -> Iterator[tuple[case.Case, Any, str, str]]:
    """Every layer in every dtype, mode and form, with what is expected of it."""
    for shape, axis in chosen.layers:
        for dtype in chosen.dtype:
            made = case.make(shape, axis, dtype, chosen.seed)
            wanted = case.expected(made)
            for mode in chosen.mode:
                for form in chosen.form:
                    yield made, wanted[mode], mode, form


def times(chosen: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """What was timed and what was refused, by kind, which is form, mode and dtype, and by layer."""
    found: dict[str, Any] = {"timed": {}, "refused": {}}
    number = len(chosen.layers) * len(chosen.dtype) * len(chosen.mode) * len(chosen.form)
    for made, wanted, mode, form in report.progress(jobs(chosen), "layers", number):
        known = steps.LOOPS if form == "loop" else steps.CALLS
        libraries = {name: known[name] for name in names if name in known}
        others = {"copy": bandwidth.copy_timer(made.x.nbytes)} if form == "loop" else {}
        measured = measure(form, libraries, made, mode, wanted, chosen.rounds, others)
        kind = f"{form}, {mode}, {made.dtype}"
        own = {name: row(measured.times, name, mode) for name in measured.errors}
        found["timed"].setdefault(kind, {})[made.name] = own
        if measured.refused:
            found["refused"].setdefault(kind, {})[made.name] = measured.refused
    return found


def row(found: timing.Times, name: str, mode: str) -> dict[str, float]:
    """What there is to say of one library, medians over the rounds."""
    said = {"ms": timing.milliseconds(found[name])}
    if BASE in found:
        said["speed"] = timing.ratio(found, BASE, name)
    if "copy" in found:
        share = functools.partial(bandwidth.share_of_limit, mode)
        said["share of the limit"] = float(np.median(list(map(share, found[name], found["copy"]))))
    return said


def geometric_means(layers: dict[str, Any]) -> dict[str, list[float]]:
    """Of the speeds, by library that has one in every layer."""
    return report.geometric_means(
        {
            layer: {name: row["speed"] for name, row in own.items() if "speed" in row}
            for layer, own in layers.items()
        }
    )


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Measures, prints, writes layer.json, .md and .png; returns what the first of them holds."""
    chosen = options(argv)
    names, skipped = steps.available(["jbn", BASE, *chosen.peers])
    measure_here = functools.partial(times, chosen, names)
    found = processes.repeated("layer", argv, chosen.runs, measure_here, **KEEP_PAGES)
    means = {kind: geometric_means(layers) for kind, layers in found["timed"].items()}
    results = report.write(
        "layer",
        argv,
        chosen.out,
        {"figures": found, "geometric means": means, "skipped": skipped},
        figures.tables(found, means),
    )
    figures.picture(found["timed"], chosen.out / "layer.png")
    return results
