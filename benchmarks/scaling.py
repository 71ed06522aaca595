"""What one synchronized layer step costs as devices are added, each with a batch of its own."""

import functools
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks import ways
from benchmarks.equality import LAYERS, case, errors, expected

STEPS = 10  # in one program: outside of one, memory allocated anew costs as much as the arithmetic
COUNTS = (1, 2, 4, 8)
VARIANTS = {  # (library, axis_name)
    "jbn": ("jbn", "i"),
    "flax": ("flax", "i"),
    "jbn, not synchronized": ("jbn", None),
    "flax, not synchronized": ("flax", None),
}


def program(variant: str, devices: int) -> Any:
    """Any number of steps, forward and backward; y and dx are the next step's x and dy."""
    library, axis_name = VARIANTS[variant]
    layer = LAYERS[library](axis_name=axis_name)

    def run(steps, params, batch_stats, x, dy):
        def body(_, carry):
            _, batch_stats, x, dy = carry
            (dparams, dx), (y, new) = ways.local_step(layer, params, batch_stats, x, None, dy)
            return dparams, new, y, dx

        carry = jax.lax.fori_loop(0, steps, body, (params, batch_stats, x, dy))
        return jax.tree.map(lambda v: v[None], carry)

    rows, whole = P("i"), P()
    specs = (whole, whole, whole, rows, rows)
    mesh = ways.mesh((devices,))
    return jax.jit(jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=rows, check_vma=False))


def prepare(variant: str, devices: int, shape: Sequence[int], seed: int) -> dict[str, Any]:
    """A compiled program and its arguments, whose first step has been compared with the reference."""
    arrays = case((devices * shape[0], *shape[1:]), devices, seed, "float32")
    params, batch_stats, x, _, dy = arrays
    mesh = ways.mesh((devices,))
    specs = P(), P(), P("i"), P("i")
    placed = [
        jax.device_put(v, NamedSharding(mesh, spec))
        for v, spec in zip((params, batch_stats, x, dy), specs, strict=True)
    ]
    start = time.perf_counter()
    traced = program(variant, devices).lower(np.int32(STEPS), *placed)
    middle = time.perf_counter()
    compiled = traced.compile()
    end = time.perf_counter()

    dparams, new, y, dx = jax.tree.map(np.asarray, compiled(np.int32(1), *placed))
    summed = {"d" + name: value.sum(0) for name, value in dparams.items()}
    actual = {"y": y.reshape(x.shape), "dx": dx.reshape(x.shape), **summed, **new}
    together = VARIANTS[variant][1] is not None
    groups = [range(devices)] if together else [(i,) for i in range(devices)]
    error = max(errors(actual, expected(arrays, groups, devices)).values())
    if not error <= 1e-4:
        raise RuntimeError(f"{variant} on {devices} devices is wrong by {error:.1e}: nothing to time")
    return {
        "run": functools.partial(compiled, np.int32(STEPS), *placed),
        "trace_s": middle - start,
        "compile_s": end - middle,
        "error": error,
    }


def timed(run: Callable[[], Any]) -> float:
    """Milliseconds per step."""
    start = time.perf_counter()
    jax.block_until_ready(run())
    return (time.perf_counter() - start) / STEPS * 1e3


def weak_scaling(
    shape: Sequence[int], repeats: int, seed: int, progress: Callable[[Iterable[Any], str], Any]
) -> dict[str, dict[str, dict[str, float]]]:
    """By variant and number of devices: median and quartiles of the milliseconds per step.

    Args:
        shape: of the batch of one device.
        repeats: how often all are timed, in turn, so that a slow minute of the machine hits all.
        seed: of the data.
        progress: wraps the loops, given what each is about.
    """
    pairs = [(variant, n) for n in COUNTS for variant in VARIANTS]
    ready = {(v, n): prepare(v, n, shape, seed) for v, n in progress(pairs, "compiling")}
    times: dict[Any, list[float]] = {pair: [] for pair in pairs}
    for _ in progress(range(repeats), "timing"):
        for pair in pairs:
            times[pair].append(timed(ready[pair]["run"]))
    found: dict[str, dict[str, dict[str, float]]] = {variant: {} for variant in VARIANTS}
    for variant, n in pairs:
        low, median, high = np.percentile(times[variant, n], (25, 50, 75)).tolist()
        against = np.divide(times[variant, n], times["flax", n])
        found[variant][str(n)] = {
            "ms": median,
            "low_ms": low,
            "high_ms": high,
            "against flax": float(np.median(against)),
            **{name: ready[variant, n][name] for name in ("trace_s", "compile_s", "error")},
        }
    return found
