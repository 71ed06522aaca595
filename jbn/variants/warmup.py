"""How the limits of batch renormalization grow: as in the paper, as in CrossQ."""

import dataclasses
from typing import Any, TypedDict

import jax.numpy as jnp

from jbn._typing import Array


@dataclasses.dataclass(frozen=True)
class Ramp:
    """A schedule: `low` until step `begin`, `high` from step `end` on, a straight line between."""

    low: float
    high: float
    begin: int
    end: int

    def __call__(self, step: Any) -> Array:
        """The value at a step."""
        length = max(self.end - self.begin, 1)
        risen = jnp.clip((jnp.asarray(step, jnp.float32) - self.begin) / length, 0, 1)
        risen = jnp.where(step >= self.end, 1, risen)
        return self.low + (self.high - self.low) * risen


class Limits(TypedDict):
    """The keyword arguments of `jbn.renorm` that a warm-up gives."""

    r_max: Ramp
    d_max: Ramp


def ioffe_warmup(begin: int = 5_000, r_end: int = 40_000, d_end: int = 25_000) -> Limits:
    """The limits of Ioffe (2017): plain batch norm for 5k steps, then r_max to 3 and d_max to 5.

    Args:
        begin: the step until which it is plain batch norm.
        r_end, d_end: the steps from which on r_max is 3 and d_max is 5.

    Returns:
        `r_max` and `d_max`, for `jbn.renorm`.

    Raises:
        ValueError: it would end before it begins.

    Example:
        >>> import jbn
        >>> limits = jbn.ioffe_warmup()
        >>> [float(limits["r_max"](step)) for step in (0, 5_000, 22_500, 40_000)]
        [1.0, 1.0, 2.0, 3.0]
        >>> norm = jbn.renorm(**limits)
    """
    end = min(r_end, d_end)
    if not 0 <= begin <= end:
        raise ValueError(f"`begin` must lie in 0 ... {end}, where a limit is reached, got {begin!r}")
    return {"r_max": Ramp(1.0, 3.0, begin, r_end), "d_max": Ramp(0.0, 5.0, begin, d_end)}


def crossq_warmup(steps: int = 100_000, r_max: float = 3.0, d_max: float = 5.0) -> Limits:
    """The limits of CrossQ (Bhatt et al. 2024): plain batch norm, and all at once from a step on.

    Args:
        steps: how long it is plain batch norm.
        r_max, d_max: the limits afterwards.

    Returns:
        `r_max` and `d_max`, for `jbn.renorm`.

    Raises:
        ValueError: a limit would be below that of plain batch norm.

    Example:
        >>> import jbn
        >>> limits = jbn.crossq_warmup(steps=1000)
        >>> float(limits["d_max"](999)), float(limits["d_max"](1000))
        (0.0, 5.0)
        >>> norm = jbn.renorm(**limits, running="variance")
    """
    if not (r_max >= 1 and d_max >= 0):
        raise ValueError(f"`r_max` must be at least 1, and `d_max` 0, got {r_max!r} and {d_max!r}")
    return {"r_max": Ramp(1.0, r_max, steps, steps), "d_max": Ramp(0.0, d_max, steps, steps)}
