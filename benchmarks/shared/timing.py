"""Times of things that are compared: a block of each in turn, over and over, so that noise hits all."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

BLOCK = 0.06  # seconds
MOST = 2000  # steps of a block; in bfloat16 the gain of a gradient may be off by a percent a step

Timer = Callable[[], float]  # seconds of one step
Times = dict[str, list[float]]  # seconds by name and round


def elapsed(run: Callable[..., Any], *arguments: Any) -> float:
    """Seconds until the result is there."""
    start = time.perf_counter()
    jax.block_until_ready(run(*arguments))
    return time.perf_counter() - start


def of_calls(run: Callable[[], Any]) -> Timer:
    """A timer of one call, from a block of calls each of which is waited for."""

    def one_after_the_other(number):
        for _ in range(number):
            jax.block_until_ready(run())

    def block(number):
        # Threads of whatever ran before may spin for some milliseconds.
        one_after_the_other(0 if number == 1 else 1 + number // 10)
        return elapsed(one_after_the_other, number)

    number = _steps_per_block(block, 1, BLOCK)
    return lambda: block(number) / number


def of_loop(run: Callable[[Any], Any]) -> tuple[Timer, int]:
    """A timer of one step of a compiled loop, and how many steps it makes beyond the first.

    What it costs to start the program, to copy its arguments and to touch fresh memory is subtracted.

    Args:
        run: of a number of steps.
    """

    def extra(steps):
        first = elapsed(run, np.int32(1))
        return elapsed(run, np.int32(1 + steps)) - first

    # What is subtracted must not be most of what is timed.
    once = min(elapsed(run, np.int32(1)) for _ in range(2))
    steps = _steps_per_block(extra, 2, max(BLOCK, 2 * once))
    return lambda: extra(steps) / steps, steps


def _steps_per_block(seconds: Callable[[int], float], least: int, block: float) -> int:
    steps = least
    while (taken := seconds(steps)) < block / 4 and steps < MOST:
        steps = min(MOST, 4 * steps)
    return int(np.clip(round(block * steps / max(taken, 1e-9)), least, MOST))


def rounds(timers: Mapping[str, Timer], number: int) -> Times:
    """The seconds of each timer in each round; each round has an order of its own."""
    rng = np.random.default_rng(0)
    times: Times = {name: [] for name in timers}
    for _ in range(number):
        for name in rng.permutation(list(timers)).tolist():
            # A difference of two times may come out negative when something else ran meanwhile.
            while (seconds := timers[name]()) <= 0:
                pass
            times[name].append(seconds)
    return times


def ratios(times: Times, a: str, b: str) -> list[float]:
    """The time of `a` by that of `b` in every round."""
    return np.divide(times[a], times[b]).tolist()


def ratio(times: Times, a: str, b: str) -> float:
    """Their median."""
    return float(np.median(ratios(times, a, b)))


def milliseconds(seconds: Sequence[float]) -> float:
    """The median."""
    return float(np.median(seconds)) * 1e3
