"""How fast is one batch norm layer? Against every peer, and against the limit of the machine.

jbn, Flax's Linen and NNX, Haiku, Equinox, Keras on JAX and PyTorch, all in one run: a timed block of
each in turn, over and over; printed are the medians over these rounds, ratios first. Every result is
compared with float64 before it is timed, and a wrong one is not timed. Two forms: "scan", steps inside
one compiled loop whose y and dx are the next step's x and dy, with the bandwidth of a copy in the same
rounds as the limit; and "call", one compiled call at a time, PyTorch's too. The calls are repeated in a
process that keeps its memory pages, and the growth of the cost with the batch and the channels is
fitted. The data are well scaled; `exactness` has others.
"""

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import jax
from rich.console import Console
from rich.progress import track

from benchmarks import bandwidth, growth, layer_case, layer_figures, report
from benchmarks.layer_case import MODES
from benchmarks.layer_targets import beyond_cache, judge, select
from benchmarks.layer_times import BASE, FIRST, FORMS, LIBRARIES, available, measure
from benchmarks.torch_steps import threads

LAYERS = (  # ResNet-50 at batch 32, an MLP, a sequence, and channels first
    ((32, 112, 112, 64), -1),
    ((32, 56, 56, 64), -1),
    ((32, 56, 56, 256), -1),
    ((32, 28, 28, 512), -1),
    ((32, 14, 14, 1024), -1),
    ((32, 7, 7, 2048), -1),
    ((256, 256), -1),
    ((4096, 1024), -1),
    ((64, 1000, 128), -1),
    ((32, 64, 56, 56), 1),
)
QUICK = (((32, 14, 14, 256), -1), ((256, 256), -1), ((8, 64, 28, 28), 1))
DTYPES = ("float32", "bfloat16")
PARTS = (*FORMS, "kept", "growth")
# glibc gives large freed blocks back to the system, which maps and zeroes them anew at the next call.
HUGE = str(2**40)
KEEP_PAGES = {
    "MALLOC_TRIM_THRESHOLD_": HUGE,
    "MALLOC_MMAP_THRESHOLD_": HUGE,
    "MALLOC_TOP_PAD_": str(2**28),
}
REPEATS = 9


def options(argv: Sequence[str]) -> argparse.Namespace:
    """The flags, checked."""
    parser = report.parser("layer", __doc__)
    parser.add_argument("--quick", action="store_true", help="three small layers, 3 rounds")
    parser.add_argument("--shape", type=int, nargs="+", help="one layer of this shape instead")
    parser.add_argument(
        "--axis", type=int, choices=(-1, 1), default=-1, help="of the channels of --shape"
    )
    parser.add_argument("--dtype", choices=DTYPES, nargs="+", default=DTYPES)
    parser.add_argument("--mode", choices=MODES, nargs="+", default=MODES)
    parser.add_argument(
        "--parts", choices=PARTS, nargs="+", default=PARTS, help="kept: the calls again"
    )
    peers = sorted({name.partition(",")[0] for name in LIBRARIES} - {FIRST, BASE})
    parser.add_argument("--only", choices=peers, nargs="*", help=f"these beside {FIRST} and {BASE}")
    parser.add_argument("--repeats", type=int, help=f"rounds: {REPEATS} where a target depends on them")
    parser.add_argument("--untimed", type=int, default=0, metavar="ROUNDS", help="before the others")
    chosen = parser.parse_args(argv)
    if chosen.shape and len(chosen.shape) < 2:
        parser.error("argument --shape: at least two sizes are needed")
    if chosen.repeats is not None and chosen.repeats < 1:
        parser.error("argument --repeats: must be at least 1")
    chosen.layers = QUICK if chosen.quick else LAYERS
    if chosen.shape:
        chosen.layers = ((tuple(chosen.shape), chosen.axis),)
    return chosen


def repeats(chosen: argparse.Namespace, dtype: str, mode: str, form: str) -> int:
    """As many rounds as were asked for; otherwise fewer where no target depends on them."""
    decides = dtype == "float32" and (mode == MODES[0] or (mode, form) == ("inference", "scan"))
    return chosen.repeats or (3 if chosen.quick or not decides else REPEATS)


@functools.lru_cache(maxsize=1)
def prepared(shape: tuple[int, ...], axis: int, dtype: str, seed: int) -> tuple[Any, Any]:
    """A case and what is expected of it, kept for the modes and forms that follow each other."""
    case = layer_case.make(shape, axis, dtype, seed)
    return case, layer_case.expected(case)


def measured(chosen: argparse.Namespace, names: Sequence[str], console: Console) -> list[dict]:
    """The records of all layers, dtypes, modes and forms."""
    forms = [form for form in FORMS if form in chosen.parts]
    jobs = [
        (*layer, dtype, mode, form)
        for layer in chosen.layers
        for dtype in chosen.dtype
        for mode in chosen.mode
        for form in forms
    ]
    records = []
    for shape, axis, dtype, mode, form in track(jobs, "layers", console=console, transient=True):
        case, r = prepared(shape, axis, dtype, chosen.seed)
        n = repeats(chosen, dtype, mode, form)
        records.append(measure(case, mode, form, names, n, r[mode], chosen.untimed))
    prepared.cache_clear()
    return records


def measured_with_pages_kept(chosen: argparse.Namespace, names: Sequence[str]) -> list[dict]:
    """The calls of jbn, Flax and PyTorch, float32, forward and backward, in a process of their own."""
    if "torch" not in names or "float32" not in chosen.dtype or MODES[0] not in chosen.mode:
        return []
    flags = ["--parts", "call", "--mode", MODES[0], "--dtype", "float32", "--only", "torch"]
    # It takes some calls until the heap has all the pages that it will need.
    flags += ["--seed", str(chosen.seed), "--untimed", "10"]
    flags += ["--quick"] if chosen.quick else []
    flags += ["--repeats", str(chosen.repeats)] if chosen.repeats else []
    if chosen.shape:
        flags += ["--shape", *map(str, chosen.shape), "--axis", str(chosen.axis)]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks", "layer", *flags, "--out", folder]
        root, environment = report.HERE.parent, {**os.environ, **KEEP_PAGES}
        subprocess.run(command, cwd=root, env=environment, stdout=subprocess.DEVNULL, check=True)
        with open(os.path.join(folder, "layer.json"), encoding="utf-8") as file:
            return json.load(file)["layers"]


def print_layers(console: Console, records: Sequence[dict], note: str = "") -> None:
    """A table per form, dtype and mode, then why a result was refused."""
    for kind in dict.fromkeys((r["form"], r["mode"], r["dtype"]) for r in records):
        some = select(records, *kind)
        console.print(layer_figures.table(some, note))
        for record in some:
            for name, why in record["refused"].items():
                console.print(f"{name}, {record['layer']}, not timed: {why}", markup=False)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures, prints, writes layer.json and the pictures; returns what the first of them holds."""
    argv = sys.argv[1:] if argv is None else list(argv)
    chosen = options(argv)
    console = report.console()
    wanted = [
        name
        for name in LIBRARIES
        if chosen.only is None or name.partition(",")[0] in (FIRST, BASE, *chosen.only)
    ]
    names, skipped = available(wanted)
    for name, why in skipped.items():
        console.print(f"{name} skipped: {why}", markup=False)

    records = measured(chosen, names, console)
    print_layers(console, records)
    kept = []
    if "kept" in chosen.parts:
        with console.status("calls again, memory pages kept"):
            kept = measured_with_pages_kept(chosen, names)
        print_layers(console, kept, ", memory pages kept (MALLOC_*)")
    grown = {}
    if "growth" in chosen.parts:
        bar = functools.partial(track, console=console, transient=True)
        grown = growth.growth(chosen.repeats or 3, chosen.seed, chosen.quick, bar)
        for kind, row in grown.items():
            exponents = ", ".join(f"{name} {e:.2f}" for name, e in row["exponent"].items())
            console.print(
                f"{row['shape']}: time ~ {kind}^exponent, upper half of the sizes: {exponents}"
            )
    cache = bandwidth.last_level_cache()
    if cache is not None:
        larger = [r["layer"] for r in records if r["dtype"] == "float32" and beyond_cache(r, cache)]
        text = "; ".join(dict.fromkeys(larger)) or "none"
        console.print(f"x in float32 is larger than the last-level cache ({cache:,} bytes): {text}")
    targets = judge(records, kept, cache)
    report.print_verdicts(console, targets, digits=3)

    figures = {
        "seed": chosen.seed,
        "threads": threads(),
        "device": jax.default_backend(),
        "last-level cache": cache,
        "layers": records,
        "pages kept": {"environment": KEEP_PAGES, "layers": kept},
        "growth": grown,
        "skipped": skipped,
        "targets": targets,
    }
    results = report.write("layer", argv, chosen.out, figures)
    if records:
        layer_figures.pictures(records, kept, chosen.out)
    if grown:
        growth.picture(grown, chosen.out / "layer_growth.png")
    return results


if __name__ == "__main__":
    main()
