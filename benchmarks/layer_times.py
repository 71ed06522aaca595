"""One layer's times in one form: every library checked, then all of them and the copy in turn."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from benchmarks import bandwidth, layer_case, timing, torch_steps
from benchmarks.layer_case import Case, WrongResultError
from benchmarks.steps import JAX_LIBRARIES, Layer, load, loop, step

FORMS = ("scan", "call")
LIBRARIES = (*JAX_LIBRARIES, *torch_steps.LAYOUTS)
FIRST, BASE = "jbn", "flax.linen"  # who is compared, and what all speeds are relative to


def available(names: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Those that can be imported, and why the others are skipped."""
    found, skipped = [], {}
    for name in names:
        try:
            load(name.partition(",")[0])
        except ImportError as missing:
            skipped[name] = str(missing)
        else:
            found.append(name)
    return found, skipped


def named(layer: Layer, result: tuple[Any, Any, Any]) -> dict[str, Any]:
    """What a step returns, by name."""
    y, _, gradients = result
    if gradients is None:
        return {"y": y}
    scale, bias = layer.affine(gradients[1])
    return {"y": y, "dx": gradients[0], "dscale": scale, "dbias": bias}


def timer(run: Callable[[Any], Any]) -> tuple[Callable[[], float], int]:
    """A timer of one step of a program that makes many, in seconds, and of how many it makes."""
    seconds = functools.partial(timing.extra_steps, run)
    # What is spent once in every program is subtracted: it must not be most of what is timed.
    once = min(timing.elapsed(run, np.int32(1)) for _ in range(2))
    steps = timing.steps_per_block(seconds, 2, max(timing.BLOCK, 2 * once))
    return lambda: seconds(steps) / steps, steps


def prepared_loop(case: Case, mode: str, name: str, r: Any) -> tuple[Callable[[], float], float]:
    """A timer of a step inside a compiled loop, in seconds, and the error of one step."""
    layer = JAX_LIBRARIES[name](case)
    arguments = layer.params, layer.state, case.x, case.dy
    compiled = jax.jit(loop(layer, mode)).lower(np.int32(1), *arguments).compile()

    def run(steps):
        return compiled(steps, *arguments)

    error = layer_case.checked(named(layer, run(np.int32(1))), r, case.dtype)
    seconds, steps = timer(run)
    result = named(layer, run(np.int32(1 + steps)))
    layer_case.still_sane({name: result[name] for name in ("y", "dx") if name in result})
    return seconds, error


def prepared_call(case: Case, mode: str, name: str, r: Any) -> tuple[Callable[[], float], float]:
    """A timer of one call at a time, in seconds, and the error of one."""
    if name in JAX_LIBRARIES:
        layer = JAX_LIBRARIES[name](case)
        run = functools.partial(jax.jit(step(layer, mode)), layer.params, layer.state, case.x, case.dy)
        result = named(layer, run())
    else:
        run, read = torch_steps.step(case, name, mode)
        result = read(run())
    error = layer_case.checked(result, r, case.dtype)
    del result
    seconds = functools.partial(timing.calls, run)
    number = timing.steps_per_block(seconds, 1, timing.BLOCK)
    return lambda: seconds(number) / number, error


PREPARE = {"scan": prepared_loop, "call": prepared_call}


def takes(form: str, name: str, case: Case) -> bool:
    """Whether a library takes part."""
    return name in JAX_LIBRARIES or (form == "call" and torch_steps.takes(name, case))


def measure(
    case: Case, mode: str, form: str, names: Sequence[str], repeats: int, r: Any, untimed: int = 0
) -> dict[str, Any]:
    """One record: a layer in a mode and a form, by every library.

    Args:
        case: the layer and its arguments.
        mode, form: of `MODES` and `FORMS`.
        names: of `LIBRARIES`; those that do not take part in this are left out.
        repeats: rounds.
        r: the results that this mode is to have, of `layer_case.expected`.
        untimed: rounds before those that count.

    Returns:
        what it is of; by library the times, the ratios and the error; in the form "scan" the
        bandwidth; and under "refused" why a library has none.
    """
    timers, errors, refused = {}, {}, {}
    for name in names:
        if takes(form, name, case):
            try:
                timers[name], errors[name] = PREPARE[form](case, mode, name, r)
            except WrongResultError as wrong:
                refused[name] = str(wrong)
    if form == "scan":
        for name, run in bandwidth.copies(case.x.nbytes).items():
            timers[name], _ = timer(run)
    timing.rounds(timers, untimed)
    times = timing.rounds(timers, repeats)
    copied = {name: times.pop(name) for name in timers if name not in errors}
    record = {
        "form": form,
        "dtype": case.dtype,
        "mode": mode,
        "layer": case.name,
        "bytes": case.x.nbytes,
        "rounds": repeats,
        "libraries": {name: figures(name, times, copied, mode, errors[name]) for name in times},
        "refused": refused,
    }
    moved = bandwidth.COPY_PASSES * case.x.nbytes
    record["GB/s"] = {name: moved / float(np.median(t)) / 1e9 for name, t in copied.items()}
    return record


def figures(name: str, times: Any, copied: Any, mode: str, error: float) -> dict[str, float]:
    """What there is to say of one library; the ratios are medians over the rounds."""
    found = {**timing.summary(times[name]), "error": error}
    if BASE in times:
        found[f"{BASE} / this"] = timing.ratio(times, BASE, name)
    if FIRST in times:
        found[f"this / {FIRST}"] = timing.ratio(times, name, FIRST)
    if copied:
        shares = (
            bandwidth.share_of_limit(mode, a, b)
            for a, b in zip(times[name], copied["copy"], strict=True)
        )
        found["share of the limit"] = float(np.median(list(shares)))
    return found
