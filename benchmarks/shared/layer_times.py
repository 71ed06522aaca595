"""The times of one layer by several libraries: each checked first, then all in turn."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from benchmarks.shared import timing
from benchmarks.shared.case import Case, WrongResultError, checked, still_sane
from benchmarks.shared.steps import Prepared, Way


class Measured(NamedTuple):
    """By library."""

    times: timing.Times  # of a step, by round; those of `others` too
    errors: dict[str, float]
    refused: dict[str, str]  # why it was not timed


def loop_timer(prepared: Prepared, wanted: Mapping[str, Any], dtype: str) -> tuple[timing.Timer, float]:
    """A timer of a step of `steps.loop`, and the error of the first."""
    run, read = prepared
    error = checked(read(run(np.int32(1))), wanted, dtype)
    timer, steps = timing.of_loop(run)
    still_sane(read(run(np.int32(1 + steps))))
    return timer, error


def call_timer(prepared: Prepared, wanted: Mapping[str, Any], dtype: str) -> tuple[timing.Timer, float]:
    """A timer of one of `steps.CALLS`, and the error of a call."""
    run, read = prepared
    error = checked(read(run()), wanted, dtype)
    return timing.of_calls(run), error


FORMS = {"loop": loop_timer, "call": call_timer}


def measure(
    form: str,
    libraries: Mapping[str, Way],
    case: Case,
    mode: str,
    wanted: Mapping[str, Any],
    rounds: int,
    others: Mapping[str, timing.Timer] | None = None,
) -> Measured:
    """The seconds of a step in every round.

    Args:
        form: of `FORMS`.
        libraries: some of `steps.LOOPS`, or of `steps.CALLS`.
        case, mode: what is called, and how.
        wanted: the result that this mode is to have, of `case.expected`.
        rounds: how often all are timed.
        others: what is timed beside them.
    """
    timers, errors, refused = dict(others or {}), {}, {}
    for name, prepare in libraries.items():
        try:
            timers[name], errors[name] = FORMS[form](prepare(case, mode), wanted, case.dtype)
        except WrongResultError as wrong:
            refused[name] = str(wrong)
    return Measured(timing.rounds(timers, rounds), errors, refused)
