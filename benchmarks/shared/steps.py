"""A step of any library: one call at a time, or many in a compiled loop, its result by name."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax

from benchmarks.shared import torch_adapter
from benchmarks.shared.adapters import ADAPTERS, Adapter, Layer, load
from benchmarks.shared.case import Case

# A function that makes a result; one that takes y, and where there are dx, dscale and dbias, out of it.
Prepared = tuple[Callable[..., Any], Callable[[Any], dict[str, Any]]]
Way = Callable[[Case, str], Prepared]  # of a case and a mode


def available(names: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """The libraries that can be imported, and why the others are skipped."""
    found, skipped = [], {}
    for name in names:
        try:
            load(name.partition(",")[0])
        except ImportError as missing:
            skipped[name] = str(missing)
        else:
            found.append(name)
    return found, skipped


def step(layer: Layer, mode: str) -> Callable[..., tuple[Any, Any, Any]]:
    """(params, state, x, dy) -> (y, state, (dparams, dx)); None for what the mode does not make."""

    def forward(params, state, x, dy):
        del dy
        return *layer.train(params, state, x), None

    def inference(params, state, x, dy):
        del dy
        return layer.infer(params, state, x), None, None

    def both(params, state, x, dy):
        y, vjp, state = jax.vjp(lambda p, x: layer.train(p, state, x), params, x, has_aux=True)
        return y, state, vjp(dy)

    return {"forward": forward, "inference": inference, "forward+backward": both}[mode]


def named(layer: Layer, result: tuple[Any, Any, Any]) -> dict[str, Any]:
    """What a step returns, by name, without the state."""
    y, _, gradients = result
    if gradients is None:
        return {"y": y}
    scale, bias = layer.affine(gradients[0])
    return {"y": y, "dx": gradients[1], "dscale": scale, "dbias": bias}


def call(adapter: Adapter, case: Case, mode: str, jit: bool = True) -> Prepared:
    """One step: () -> a result."""
    layer = adapter(case)
    run = jax.jit(step(layer, mode)) if jit else step(layer, mode)
    arguments = layer.params, layer.state, case.x, case.dy
    return functools.partial(run, *arguments), functools.partial(named, layer)


def loop(adapter: Adapter, case: Case, mode: str) -> Prepared:
    """A compiled loop: a number of steps -> the last one's result.

    y is the next step's x, and dx the next step's dy, so that every step must write both.
    """
    layer = adapter(case)
    one = step(layer, mode)

    def run(steps, params, state, x, dy):
        def body(_, carry):
            x, state, gradients = carry
            y, new, gradients = one(params, state, x, None if gradients is None else gradients[1])
            return y, state if new is None else new, gradients

        gradients = (params, dy) if mode == "forward+backward" else None
        return jax.lax.fori_loop(0, steps, body, (x, state, gradients))

    arguments = layer.params, layer.state, case.x, case.dy
    compiled = jax.jit(run).lower(jax.ShapeDtypeStruct((), "int32"), *arguments).compile()
    return lambda steps: compiled(steps, *arguments), functools.partial(named, layer)


LOOPS: dict[str, Way] = {name: functools.partial(loop, adapter) for name, adapter in ADAPTERS.items()}
CALLS: dict[str, Way] = {name: functools.partial(call, adapter) for name, adapter in ADAPTERS.items()}
CALLS["torch"] = torch_adapter.call
CALLS["torch, NCHW"] = functools.partial(torch_adapter.call, contiguous=True)
