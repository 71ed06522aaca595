"""The limit of the machine: how fast an array of x's size is copied, and what a layer must move.

The floor of a step, in passes over x: forward 3 (read for the statistics, read, write), inference 2
(read, write), forward and backward 8 (those 3; read x and dy for the sums; read both, write dx). A step
at the limit moves the floor at the bandwidth of a copy. A layer that works in place, or whose arrays a
cache holds from one pass to the next, may exceed it.
"""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.shared import timing

PASSES = {"forward+backward": 8, "forward": 3, "inference": 2}
COPY_PASSES = 2


def copy_timer(size: int) -> timing.Timer:
    """Seconds in which `size` bytes are read and as many are written to another buffer."""

    def copies(passes, x):
        # The number of the pass is added: the compiler would leave out a pass otherwise.
        def body(i, buffers):
            return buffers[0], buffers[0] + i.astype(x.dtype)

        return jax.lax.fori_loop(0, passes, body, (x, x))[1]

    source = jnp.ones(max(1, size // 4), jnp.float32)
    compiled = jax.jit(copies).lower(np.int32(1), source).compile()
    return timing.of_loop(lambda passes: compiled(passes, source))[0]


def share_of_limit(mode: str, seconds: float, copy_seconds: float) -> float:
    """The share of a copy's bandwidth at which a step moves its floor.

    Args:
        mode: of `PASSES`.
        seconds: of a step.
        copy_seconds: of a copy of an array of x's size.
    """
    return PASSES[mode] / seconds / (COPY_PASSES / copy_seconds)
