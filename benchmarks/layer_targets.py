"""What one layer is to reach, from the records of `layer_times`: the float32 figures decide."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks import report
from benchmarks.layer_times import BASE, FIRST
from benchmarks.steps import JAX_LIBRARIES

Record = Mapping[str, Any]
SPEED, GOAL = 1.5, 1.9
BEYOND_CACHE, WITHIN_CACHE = 0.85, 0.5


def select(
    records: Iterable[Record], form: str, mode: str | None = None, dtype: str | None = None
) -> list[Record]:
    """The records of a form, and of a mode and a dtype where they are given."""
    return [
        record
        for record in records
        if record["form"] == form
        and mode in (None, record["mode"])
        and dtype in (None, record["dtype"])
    ]


def advantage(records: Iterable[Record], peer: str) -> list[float]:
    """The time of the peer by jbn's, by layer; without those where the peer has none.

    NaN where jbn has none, which meets no target.
    """
    return [
        record["libraries"][peer].get(f"this / {FIRST}", math.nan)
        for record in records
        if peer in record["libraries"]
    ]


def beyond_cache(record: Record, cache: int) -> bool:
    """Whether x alone is larger than the last-level cache."""
    return record["bytes"] > cache


def judge(records: Sequence[Record], kept: Sequence[Record], cache: int | None) -> dict[str, Any]:
    """jbn's targets, its worst figure for each, and whether that meets it.

    Args:
        records: of `layer_times.measure`.
        kept: the same of a process that keeps its memory pages.
        cache: the bytes of the last-level cache; without it there are no targets of the limit.
    """
    found: dict[str, Any] = {}

    def add(name: str, values: list[float], target: float, mean: bool = False) -> None:
        if values:
            shown = [geometric_mean(values)] if mean else values
            found[name] = {**report.verdict_at_least(shown, target), "layers": len(values)}

    both = select(records, "scan", "forward+backward", "float32")
    ratios = advantage(both, BASE)
    name = f"scan, forward+backward: time of {BASE} by jbn's, "
    add(f"{name}geometric mean (goal {GOAL:g})", ratios, SPEED, mean=True)
    add(f"{name}worst layer", ratios, 1)
    for peer in (lib for lib in JAX_LIBRARIES if lib not in (FIRST, BASE)):
        name = f"scan, forward+backward: time of {peer} by jbn's, worst layer"
        add(name, advantage(both, peer), 1)
    ratios = advantage(select(records, "scan", "inference", "float32"), BASE)
    add(f"scan, inference: time of {BASE} by jbn's, worst layer", ratios, 1)
    for some, which in ((records, "its own allocation"), (kept, "pages kept")):
        ratios = advantage(select(some, "call", "forward+backward", "float32"), "torch")
        name = "one call at a time, forward+backward: time of torch, channels last, by jbn's"
        add(f"{name}, geometric mean, {which}", ratios, 1, mean=True)
    if cache is not None:
        for beyond, target in ((True, BEYOND_CACHE), (False, WITHIN_CACHE)):
            shares = [
                record["libraries"].get(FIRST, {}).get("share of the limit", math.nan)
                for record in both
                if beyond_cache(record, cache) is beyond
            ]
            where = "larger than" if beyond else "within"
            size = f"{where} the last-level cache of {cache / 2**20:g} MiB"
            add(f"scan, forward+backward: share of the limit, worst layer, x {size}", shares, target)
    return found


def geometric_mean(values: Sequence[float]) -> float:
    """NaN where a value is."""
    return math.nan if any(map(math.isnan, values)) else statistics.geometric_mean(values)
