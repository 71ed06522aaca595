"""Is a layer on several devices the layer on one? Every way against float64 over all the samples."""

import contextlib
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import flax.linen
import jax
import numpy as np

import jbn
from benchmarks.devices import ways
from benchmarks.shared.reference import EPSILON, error, gradient_error, reference

MOMENTUM = 0.5  # so that the running statistics show an error of the batch's undiminished
LAYERS: dict[str, Callable[..., Any]] = {
    name: functools.partial(layer, use_running_average=False, momentum=MOMENTUM, epsilon=EPSILON)
    for name, layer in (("jbn", jbn.linen.BatchNorm), ("flax", flax.linen.BatchNorm))
}
SHAPE = (2 * ways.DEVICES, 8, 4, 8)
DTYPES = ("float32", "float64")
MASKS = ("no mask", "uneven mask", "one device empty")
Errors = dict[str, float] | str


def case(
    shape: Sequence[int], devices: int, seed: int, dtype: str, mask: str = MASKS[0]
) -> tuple[Any, ...]:
    """(params, batch_stats, x, mask, dy), deviation 1 on every device and the mean its index.

    The masks leave a different count on every device, and "one device empty" none on the second.
    """
    rng = np.random.default_rng(seed)
    channels, rows = shape[-1], shape[0] // devices
    x, dy = rng.standard_normal((2, *shape))
    x += np.repeat(np.arange(devices), rows).reshape(-1, *(1,) * (len(shape) - 1))
    keep = rng.random((*shape[:-1], 1)) < 0.6
    if mask == MASKS[2]:
        keep[rows : 2 * rows] = False
    state = {
        "params": {"scale": rng.uniform(0.5, 1.5, channels), "bias": rng.uniform(-1, 1, channels)},
        "batch_stats": {"mean": rng.standard_normal(channels), "var": rng.uniform(0.5, 1.5, channels)},
    }
    state, x, dy = jax.tree.map(lambda v: v.astype(dtype), (state, x, dy))
    return state["params"], state["batch_stats"], x, None if mask == MASKS[0] else keep, dy


def expected(
    arrays: tuple[Any, ...], groups: Iterable[Sequence[int]], devices: int
) -> dict[str, np.ndarray]:
    """The result named as by `ways`, from float64 NumPy: one batch of each group's samples."""
    params, batch_stats, x, mask, dy = arrays

    def split(v):
        return v.reshape(devices, -1, *v.shape[1:])

    y, dx = np.empty(split(x).shape), np.empty(split(x).shape)
    mean, var = np.empty((devices, x.shape[-1])), np.empty((devices, x.shape[-1]))
    dscale, dbias = np.zeros(x.shape[-1]), np.zeros(x.shape[-1])
    for group in map(list, groups):
        own, cotangent = (split(v)[group].reshape(-1, *v.shape[1:]) for v in (x, dy))
        kept = None if mask is None else split(mask)[group].reshape(-1, *mask.shape[1:])
        r = reference(own, cotangent, params["scale"], params["bias"], kept)
        y[group], dx[group] = (r[name].reshape(len(group), *y.shape[1:]) for name in ("y", "dx"))
        dscale += r["dscale"]
        dbias += r["dbias"]
        for name, into in (("mean", mean), ("var", var)):
            into[group] = MOMENTUM * batch_stats[name].astype(float) + (1 - MOMENTUM) * r[name]
    y, dx = y.reshape(x.shape), dx.reshape(x.shape)
    return {"y": y, "dx": dx, "dscale": dscale, "dbias": dbias, "mean": mean, "var": var}


def errors(actual: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Of every part of a result; gradients, sums over all samples, by their largest element."""
    measure = {name: gradient_error if name.startswith("d") else error for name in wanted}
    return {name: measure[name](actual[name], r) for name, r in wanted.items()}


def equality(
    library: str,
    name: str,
    way: ways.Way,
    seed: int = 0,
    dtypes: Sequence[str] = DTYPES,
    masks: Sequence[str] = MASKS,
) -> dict[str, dict[str, Errors]]:
    """The errors of one library in one way, by dtype and mask; what it raises where it raises."""
    groups = ways.GROUPS if name in ways.GROUPED else (range(ways.DEVICES),)
    step = way(LAYERS[library])
    found: dict[str, dict[str, Errors]] = {}
    for dtype in dtypes:
        found[dtype] = {}
        for mask in masks:
            arrays = case(SHAPE, ways.DEVICES, seed, dtype, mask)
            wanted = expected(arrays, groups, ways.DEVICES)
            with jax.enable_x64(True) if dtype == "float64" else contextlib.nullcontext():
                try:
                    found[dtype][mask] = errors(step(*arrays), wanted)
                except Exception as raised:  # whatever a library does not support
                    found[dtype][mask] = ": ".join(
                        [type(raised).__name__, *str(raised).splitlines()[:1]]
                    )
    return found
