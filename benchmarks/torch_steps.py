"""A step of PyTorch's batch norm on the CPU, from the same arrays, with a thread for every core.

"torch": the channels last in memory, `memory_format=torch.channels_last` in 4-D and (samples, channels)
otherwise, a view. "torch, NCHW": contiguous, the channels on axis 1, 4-D only; of an array whose
channels are last it takes a transposed copy, made before the clock runs.
"""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.layer_case import MOMENTUM, Case
from benchmarks.reference import EPSILON
from benchmarks.steps import load

LAYOUTS = ("torch", "torch, NCHW")


def takes(layout: str, case: Case) -> bool:
    """Whether this layout is one for this case."""
    contiguous = len(case.shape) == 4
    return contiguous if layout == "torch, NCHW" else case.axis == -1


def threads() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def step(
    case: Case, layout: str, mode: str
) -> tuple[Callable[[], Any], Callable[[Any], dict[str, jax.Array]]]:
    """A step.

    Args:
        case: the arguments.
        layout: one of `LAYOUTS` that `takes` the case.
        mode: one of `MODES`.

    Returns:
        run: () -> what torch returns, the running statistics updated in place.
        read: from that, y and where there is a gradient dx, dscale and dbias, y and dx as x lies.
    """
    torch = load("torch")
    torch.set_num_threads(threads())
    dtype = getattr(torch, case.dtype)

    def tensor(a: jax.Array) -> Any:
        out = torch.from_numpy(np.array(a, np.float32)).to(dtype)
        if case.axis == 1:
            return out
        if len(case.shape) != 4:
            return out.reshape(-1, case.shape[-1])
        moved = out.movedim(-1, 1)
        return moved.contiguous() if layout == "torch, NCHW" else moved

    def array(t: Any) -> jax.Array:
        t = t.detach()
        if t.ndim == 4 and case.axis == -1:
            t = t.movedim(1, -1)
        return jnp.asarray(t.float().contiguous().numpy(), case.dtype if t.ndim > 1 else jnp.float32)

    x, dy = tensor(case.x), tensor(case.dy)
    scale, bias, mean, var = (torch.from_numpy(v.copy()) for v in case.values)
    leaves = [t.requires_grad_(mode == "forward+backward") for t in (x, scale, bias)]

    def batch_norm(training: bool) -> Any:
        norm = torch.nn.functional.batch_norm
        return norm(x, mean, var, scale, bias, training, momentum=1 - MOMENTUM, eps=EPSILON)

    def run() -> Any:
        if mode == "forward+backward":
            y = batch_norm(True)
            return y, *torch.autograd.grad(y, leaves, dy)
        with torch.no_grad():
            return (batch_norm(mode == "forward"),)

    def read(results: Any) -> dict[str, jax.Array]:
        return dict(zip(("y", "dx", "dscale", "dbias"), map(array, results), strict=False))

    return run, read
