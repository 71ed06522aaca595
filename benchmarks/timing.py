"""Times of things that are compared: a block of each in turn, over and over, so that noise hits all."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

BLOCK = 0.06  # seconds
MOST = 2000  # steps of a block; in bfloat16 the gain of a gradient may be off by a percent a step


def elapsed(run: Callable[..., Any], *arguments: Any) -> float:
    """Seconds until the result is there."""
    start = time.perf_counter()
    jax.block_until_ready(run(*arguments))
    return time.perf_counter() - start


def extra_steps(run: Callable[[Any], Any], steps: int) -> float:
    """Seconds that a program takes for so many steps beyond its first.

    What it costs to start a program, to copy its arguments and to touch its fresh memory is in both.
    """
    first = elapsed(run, np.int32(1))
    return elapsed(run, np.int32(1 + steps)) - first


def calls(run: Callable[[], Any], number: int) -> float:
    """Seconds for so many calls, each waited for, after a tenth as many that are not timed."""
    # Threads of whatever ran before may spin for some milliseconds.
    for _ in range(1 + number // 10):
        jax.block_until_ready(run())
    start = time.perf_counter()
    for _ in range(number):
        jax.block_until_ready(run())
    return time.perf_counter() - start


def steps_per_block(seconds: Callable[[int], float], least: int, block: float) -> int:
    """How many steps take about `block` seconds.

    Args:
        seconds: of a number of steps.
        least: the smallest number allowed.
        block: the seconds to aim at.
    """
    steps = least
    while (taken := seconds(steps)) < block / 4 and steps < MOST:
        steps = min(MOST, 4 * steps)
    return int(np.clip(round(block * steps / max(taken, 1e-9)), least, MOST))


def rounds(timers: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """The seconds of each timer in each round; each round has an order of its own."""
    rng = np.random.default_rng(0)
    times: dict[str, list[float]] = {name: [] for name in timers}
    for _ in range(repeats):
        for name in rng.permutation(list(timers)).tolist():
            # A difference of two times may come out negative when something else ran meanwhile.
            while (seconds := timers[name]()) <= 0:
                pass
            times[name].append(seconds)
    return times


def ratio(times: Mapping[str, list[float]], a: str, b: str) -> float:
    """The median over the rounds of the time of `a` by that of `b`."""
    return float(np.median(np.divide(times[a], times[b])))


def summary(seconds: list[float]) -> dict[str, float]:
    """Median and quartiles in milliseconds."""
    low, median, high = (np.percentile(seconds, (25, 50, 75)) * 1e3).tolist()
    return {"ms": median, "low_ms": low, "high_ms": high}
