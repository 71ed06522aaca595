"""The limit of the machine: how fast an array of x's size is copied, and what a layer must move.

The floor of a step, in passes over x: forward 3 (read for the statistics, read, write), inference 2
(read, write), forward and backward 8 (those 3; read x and dy for the sums; read both, write dx). A step
at the limit moves the floor at the bandwidth of a copy. A layer that works in place, or whose arrays a
cache holds from one pass to the next, may exceed it.
"""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

PASSES = {"forward+backward": 8, "forward": 3, "inference": 2}
COPY_PASSES = 2
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


def copies(size: int) -> dict[str, Callable[[np.int32], jax.Array]]:
    """Compiled loops: a number of passes that read `size` bytes and write as many.

    Both add the number of the pass, which keeps the compiler from leaving out a pass. "copy" reads one
    buffer and writes another, "in place" writes the one that it has read.
    """
    source = jnp.ones(max(1, size // 4), jnp.float32)

    def copy(passes, x):
        def body(i, buffers):
            return buffers[0], buffers[0] + i.astype(x.dtype)

        return jax.lax.fori_loop(0, passes, body, (x, x))[1]

    def in_place(passes, x):
        return jax.lax.fori_loop(0, passes, lambda i, x: x + i.astype(x.dtype), x)

    def compiled(function):
        program = jax.jit(function).lower(np.int32(1), source).compile()
        return lambda passes: program(passes, source)

    return {"copy": compiled(copy), "in place": compiled(in_place)}


def share_of_limit(mode: str, seconds: float, copy_seconds: float) -> float:
    """The share of a copy's bandwidth at which a step moves its floor.

    Args:
        mode: of `PASSES`.
        seconds: of a step.
        copy_seconds: of a pass of the copy over an array of x's size.
    """
    return PASSES[mode] / seconds / (COPY_PASSES / copy_seconds)


def last_level_cache(folder: Path = CACHES) -> int | None:
    """The bytes of the largest cache of a core; None where the system does not tell."""
    sizes = [path.read_text().strip() for path in folder.glob("index*/size")]
    return max((int(size[:-1]) * UNITS[size[-1]] for size in sizes), default=None)
