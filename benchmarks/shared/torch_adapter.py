"""PyTorch's batch norm on the CPU, one call at a time, in its fastest layouts.

"torch" has the channels last: 4-D data in a tensor whose memory lies so (PyTorch calls that format
`channels_last`), other data as rows of samples. "torch, NCHW" has contiguous 4-D tensors with the
channels first. PyTorch has no loop in a compiled program.
"""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.shared.case import MOMENTUM, Case
from benchmarks.shared.reference import EPSILON

LAYOUTS = ("torch", "torch, NCHW")


def takes(layout: str, case: Case) -> bool:
    """Whether this layout is one for this case."""
    return case.x.ndim == 4 if layout == "torch, NCHW" else case.axis == -1


def threads() -> int:
    """The cores that this process may use, as XLA does."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def step(
    layout: str, case: Case, mode: str
) -> tuple[Callable[[], Any], Callable[[Any], dict[str, jax.Array]]]:
    """A step.

    Args:
        layout: one of `LAYOUTS` that `takes` the case.
        case: the arguments.
        mode: one of `MODES`.

    Returns:
        run: () -> what torch returns, the running statistics updated in place.
        read: from that, y and where there is a gradient dx, dscale and dbias, y and dx as x lies.
    """
    import torch

    torch.set_num_threads(threads())
    dtype = getattr(torch, case.dtype)

    def tensor(a):
        out = torch.from_numpy(np.array(a, np.float32)).to(dtype)
        if case.axis == 1:
            return out
        if out.ndim != 4:
            return out.reshape(-1, out.shape[-1])
        moved = out.movedim(-1, 1)
        return moved.contiguous() if layout == "torch, NCHW" else moved

    def array(t):
        t = t.detach()
        if t.ndim == 4 and case.axis == -1:
            t = t.movedim(1, -1)
        return jnp.asarray(t.float().contiguous().numpy(), case.dtype if t.ndim > 1 else jnp.float32)

    x, dy = tensor(case.x), tensor(case.dy)
    scale, bias, mean, var = (torch.from_numpy(v.copy()) for v in case.values)
    leaves = [t.requires_grad_(mode == "forward+backward") for t in (x, scale, bias)]

    def batch_norm(training):
        norm = torch.nn.functional.batch_norm
        return norm(x, mean, var, scale, bias, training, momentum=1 - MOMENTUM, eps=EPSILON)

    def run():
        if mode == "forward+backward":
            y = batch_norm(True)
            return y, *torch.autograd.grad(y, leaves, dy)
        with torch.no_grad():
            return (batch_norm(mode == "forward"),)

    def read(results):
        return dict(zip(("y", "dx", "dscale", "dbias"), map(array, results), strict=False))

    return run, read
