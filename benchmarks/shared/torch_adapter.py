"""PyTorch's batch norm on the CPU, one call at a time: it has no loop in a compiled program.

Where x has its channels last: 4-D data in a tensor whose memory lies so (PyTorch calls that format
`channels_last`; it is the faster one), or contiguous with the channels first (PyTorch's default, and
the more exact one); other data as rows of samples.
"""

import os
from typing import Any

import jax.numpy as jnp
import numpy as np

from benchmarks.shared.adapters import load
from benchmarks.shared.case import MOMENTUM, Case
from benchmarks.shared.reference import EPSILON


def call(case: Case, mode: str, contiguous: bool = False) -> Any:
    """A step, the running statistics updated in place.

    Args:
        case: the arguments.
        mode: one of `MODES`.
        contiguous: the channels first.

    Returns:
        run: () -> what torch returns.
        read: from that, y and where there is a gradient dx, dscale and dbias, y and dx as x lies.
    """
    torch = load("torch")
    # As many as XLA uses.
    known = hasattr(os, "sched_getaffinity")
    torch.set_num_threads(len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1)
    dtype = getattr(torch, case.dtype)

    def tensor(a):
        out = torch.from_numpy(np.array(a, np.float32)).to(dtype)
        if case.axis == 1:
            return out
        if out.ndim != 4:
            return out.reshape(-1, out.shape[-1])
        moved = out.movedim(-1, 1)
        return moved.contiguous() if contiguous else moved

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
