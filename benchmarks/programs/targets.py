"""What is asked of jbn's programs, and what was found."""

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks import report
from benchmarks.programs.chips import PLATFORMS

FORWARD = {"gpu": 3.25, "tpu": 3.1}
BACKWARD = 5.1
IN_PLACE, REMAT = 0.55, 0.6
NAMED_FORWARD = 2


def judge(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """By target: jbn's worst figure, and whether that meets it; `found` is by chip and part."""
    return {
        f"{chip}, {name}": report.verdict(values, limit)
        for chip, parts in found.items()
        for part, row in parts.items()
        for name, values, limit in _TARGETS[part](PLATFORMS[chip], row["figures"])
    }


Target = tuple[str, list[float], float]


def _layers(on: str, figures: Mapping[str, Any]) -> Iterator[Target]:
    pairs = [row for cases in figures.values() for row in cases.values()]
    yield "layer, passes forward", [p["jbn"]["forward"] for p in pairs], FORWARD[on]
    yield "layer, passes backward", [p["jbn"]["backward"] for p in pairs], BACKWARD
    ratios = [p["jbn"]["backward"] / p["flax"]["backward"] for p in pairs]
    yield "layer, passes backward / flax", ratios, 1


def _networks(on: str, figures: Mapping[str, Any]) -> Iterator[Target]:
    del on
    for network, by_dtype in figures.items():
        for dtype, row in by_dtype.items():
            yield f"{network}, {dtype}, bytes / flax", [row["jbn"]["GB"] / row["flax"]["GB"]], 1


def _memory(on: str, figures: Mapping[str, Any]) -> Iterator[Target]:
    if on == "tpu":
        return  # XLA makes again by itself what need not be kept.
    for name, limit in {"jbn in place": IN_PLACE, "jbn, relu, remat_policy": REMAT}.items():
        for dtype, cases in figures.items():
            yield f"{name}, {dtype}, memory / flax", [cases[name]["against flax"]], limit


def _all_reduces(on: str, figures: Mapping[str, Any]) -> Iterator[Target]:
    del on
    for count, ways in figures.items():
        jit, named = ways["sharded jit"], ways["axis_name"]
        more = jit["jbn"]["forward"][0] - jit["flax"]["forward"][0]
        yield f"{count}, sharded jit, all-reduces forward more than flax", [more], 0
        yield f"{count}, axis_name, all-reduces forward", [named["jbn"]["forward"][1]], NAMED_FORWARD
        backward = [w["jbn"]["backward"][1] - w["flax"]["backward"][1] for w in ways.values()]
        yield f"{count}, all-reduces backward more than flax", backward, 0


_TARGETS = {
    "layers": _layers,
    "networks": _networks,
    "memory": _memory,
    "all-reduces": _all_reduces,
}
