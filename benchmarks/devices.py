"""Many devices: is it the result of one, what is sent, and what does that cost? jbn and flax.

Equality with float64 over all samples in every way to run on several devices; the all-reduces of the
compiled programs; weak scaling over host devices, which are THREADS OF ONE CPU; and an ESTIMATE on
paper for 1,024 devices.
"""

import functools
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure
from rich.progress import track

from benchmarks import collectives, equality, estimate, report, scaling, ways

TARGETS = {"float32": 1e-6, "float64": 1e-12}
CHANNELS = 256
COLORS = {"jbn": "C0", "flax": "C1"}


def equality_tables(found: Mapping[str, Any]) -> list[Any]:
    """One table per dtype, rows ways, columns libraries and masks, cells the worst of all results."""

    def cell(result: Any) -> Any:
        return "raises" if isinstance(result, str) else equality.worst(result)

    return [
        report.table(
            f"{dtype}: worst error of y, dx, dscale, dbias and the running mean and variance",
            "way",
            {
                name: {f"{lib}, {mask}": cell(r) for lib in row for mask, r in row[lib][dtype].items()}
                for name, row in found.items()
            },
            lambda _, limit=limit: limit,
        )
        for dtype, limit in TARGETS.items()
    ]


def raised(found: Mapping[str, Any]) -> list[str]:
    """What is raised by whom, once each."""
    return [
        f"{lib} raises, {name}: {message}"
        for name, row in found.items()
        for lib, by_dtype in row.items()
        for message in {
            r: None for by_mask in by_dtype.values() for r in by_mask.values() if isinstance(r, str)
        }
    ]


def communication_table(found: Mapping[str, Any]) -> Any:
    """Rows libraries and ways, columns programs."""

    def span(pair: Sequence[int]) -> str:
        return f"{pair[0]:,}" if pair[0] == pair[1] else f"{pair[0]:,} to {pair[1]:,}"

    def cell(sent: Mapping[str, Any]) -> str:
        text = f"{span(sent['executed'])} (of {sent['in the program']}), {span(sent['bytes'])} B"
        return text + "".join(f", [red]{other}[/red]" for other in sent["others"])

    rows = {name: {kind: cell(sent) for kind, sent in row.items()} for name, row in found.items()}
    title = (
        f"one layer of {CHANNELS} channels, float32, {ways.DEVICES} devices: all-reduces executed "
        "(of those in the program) and their bytes; a range is by the branch that the data decide"
    )
    return report.table(title, "library, way", rows)


def scaling_table(found: Mapping[str, Any], shape: Sequence[int]) -> Any:
    """Rows numbers of devices, columns variants."""
    rows = {
        n: {
            **{variant: f"{figures[n]['ms']:.2f}" for variant, figures in found.items()},
            "jbn / flax": f"{jbn['against flax']:.2f}",
        }
        for n, jbn in found["jbn"].items()
    }
    title = (
        f"weak scaling, forward + backward, {tuple(shape)} float32 per device: median ms per step. "
        f"The devices are THREADS OF ONE CPU with {os.cpu_count()} cores"
    )
    return report.table(title, "devices", rows)


def estimate_table(found: Mapping[str, Any]) -> Any:
    """At the largest number of devices."""
    rows = {
        name: {
            "all-reduces": str(row["all-reduces"]),
            "bytes": f"{row['bytes']:,.0f}",
            **{t: f"{row[t][-1] * 1e3:,.2f} ms" for t in estimate.TOPOLOGIES},
        }
        for name, row in found.items()
        if name != "devices"
    }
    title = f"ESTIMATE on paper, not measured: {estimate.MANY:,} devices, forward + backward"
    return report.table(f"{title}; {estimate.ASSUMPTIONS}", "float32", rows)


def picture(scaled: Mapping[str, Any], guessed: Mapping[str, Any], title: str, path: Path) -> None:
    """Weak scaling as measured, with quartiles, and the estimate for the layers of ResNet-50."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    counts = [int(n) for n in scaled["jbn"]]
    for variant, figures in scaled.items():
        library, _, rest = variant.partition(",")
        low, middle, high = (
            np.array([f[k] for f in figures.values()]) for k in ("low_ms", "ms", "high_ms")
        )
        left.errorbar(
            counts,
            middle,
            (middle - low, high - middle),
            color=COLORS[library],
            linestyle="--" if rest else "-",
            marker="o" if library == "jbn" else "s",
            markerfacecolor="none" if rest else None,
            capsize=3,
            label=variant,
        )
    left.set(
        xlabel="devices (threads of one CPU)", ylabel="ms per step, median and quartiles", title=title
    )
    left.set(xticks=counts, ylim=(0, None))
    for library, color in COLORS.items():
        for topology, style in zip(estimate.TOPOLOGIES, ("-", "--"), strict=True):
            seconds = np.array(guessed[f"{library}, ResNet-50"][topology])
            right.loglog(
                guessed["devices"], seconds * 1e3, style, color=color, label=f"{library}, {topology}"
            )
    right.set(
        xlabel="devices",
        ylabel="ms of communication per step",
        title=f"ESTIMATE on paper: {len(estimate.RESNET50)} layers of ResNet-50,\n"
        f"{estimate.LATENCY * 1e6:g} us per message, {estimate.BANDWIDTH / 1e9:g} GB/s per link",
    )
    for ax in (left, right):
        ax.grid(alpha=0.3)
        ax.legend()
    figure.savefig(path, dpi=100)


def judge(equal: Mapping[str, Any], sent: Mapping[str, Any]) -> dict[str, Any]:
    """jbn's targets, its worst figure for each, and whether that meets it."""
    found = {
        f"error in every way, {dtype}": report.verdict(
            [equality.worst(r) for row in equal.values() for r in row["jbn"][dtype].values()], limit
        )
        for dtype, limit in TARGETS.items()
    }
    for kind in ("shard_map", "jit"):
        rows = [row for name, row in sent.items() if name.startswith(f"jbn, {kind}")]
        forward, both = ([row[k]["executed"] for row in rows] for k in collectives.PROGRAMS[:2])
        pairs = list(zip(forward, both, strict=True))
        found[f"{kind}: all-reduces forward, at most"] = report.verdict([f[1] for f in forward], 2)
        found[f"{kind}: all-reduces backward, at most"] = report.verdict(
            [b[i] - f[i] for f, b in pairs for i in (0, 1)], 1
        )
    every = [
        program for name, row in sent.items() if name.startswith("jbn") for program in row.values()
    ]
    ungrouped = [row for name, row in sent.items() if name.startswith("jbn") and "groups" not in name]
    largest = [size / 4 / CHANNELS for row in ungrouped for p in row.values() for size in p["sizes"]]
    found["values per channel in one all-reduce, at most"] = report.verdict(largest, 4)
    found["collectives other than all-reduces"] = report.verdict([len(p["others"]) for p in every], 0)
    inference = [row["inference"] for name, row in sent.items() if name.startswith("jbn")]
    found["all-reduces in inference"] = report.verdict([p["in the program"] for p in inference], 0)
    return found


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures, prints, writes devices.json and devices.png; returns what the first of them holds."""
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = report.parser("devices", __doc__)
    shape = [8, 28, 28, 128]
    parser.add_argument("--shape", type=int, nargs="+", default=shape, help="timed, of one device")
    parser.add_argument("--repeats", type=int, default=25, help="how often each is timed")
    parser.add_argument("--only", default="", help="text: the ways whose names hold it")
    options = parser.parse_args(argv)
    if jax.device_count() < ways.DEVICES:
        sys.exit(f"{ways.DEVICES} devices are needed; `python -m benchmarks devices` makes them")
    chosen = {name: way for name, way in (ways.WAYS | ways.GROUPED).items() if options.only in name}
    if not chosen:
        parser.error(f"no way holds {options.only!r}: {', '.join(ways.WAYS | ways.GROUPED)}")
    console = report.console()
    bar = functools.partial(track, console=console, transient=True)

    equal = {
        name: {lib: equality.equality(lib, name, way, options.seed) for lib in equality.LAYERS}
        for name, way in bar(chosen.items(), "equality")
    }
    for each in equality_tables(equal):
        console.print(each)
    for line in raised(equal):
        console.print(line, markup=False)
    cases = [(lib, case) for lib in equality.LAYERS for case in collectives.CASES]
    sent = {
        f"{lib}, {case}": collectives.communication(lib, case, CHANNELS)
        for lib, case in bar(cases, "communication")
    }
    console.print(communication_table(sent))
    scaled = scaling.weak_scaling(options.shape, options.repeats, options.seed, bar)
    console.print(scaling_table(scaled, options.shape))
    sizes = {
        lib: [size / CHANNELS for size in sent[f"{lib}, shard_map"]["forward + backward"]["sizes"]]
        for lib in equality.LAYERS
    }
    guessed = estimate.estimates(sizes, CHANNELS)
    console.print(estimate_table(guessed))
    targets = judge(equal, sent)
    report.print_verdicts(console, targets)

    figures = {
        "seed": options.seed,
        "equality": {"shape": equality.SHAPE, "devices": ways.DEVICES, "errors": equal},
        "communication": {"channels": CHANNELS, "devices": ways.DEVICES, "programs": sent},
        "weak scaling": {"shape": options.shape, "repeats": options.repeats, "variants": scaled},
        "estimate": {"assumptions": estimate.ASSUMPTIONS, **guessed},
        "targets": targets,
    }
    results = report.write("devices", argv, options.out, figures)
    title = (
        f"measured: {tuple(options.shape)} per device,\nthreads of one CPU with {os.cpu_count()} cores"
    )
    picture(scaled, guessed, title, options.out / "devices.png")
    return results
