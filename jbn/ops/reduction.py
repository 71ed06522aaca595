"""From the shape of x to that of its statistics, and back."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jbn._typing import Array, AxisName, Groups
from jbn.ops.platform import choose

# Rows of a matrix for which XLA on a GPU writes x - shift to memory before it sums, unless the sum is
# in blocks, and into how many at least: more than that cost more than they save.
_FEW_ROWS = range(256, 8192)
_BLOCKS = 16
# Arrays up to this size XLA:CPU sums one value after the other, and the error grows with their number.
_SMALL = 8192


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=[],
    meta_fields=["axes", "axis_name", "groups"],
)
@dataclasses.dataclass(frozen=True)
class Reduction:
    """Which values share statistics: those along `axes`, on all devices of `axis_name` or of a group.

    `sum` goes from the shape of x to that of the statistics, the feature axes; `expand` goes back as
    far as broadcasting against x needs. `spread` goes all the way, and its transpose is `sum`.
    """

    axes: tuple[int, ...]
    axis_name: AxisName | None = None
    groups: Groups | None = None

    def samples(self, shape: tuple[int, ...]) -> int:
        """How many values of an array of this shape share a statistic, on this device."""
        return math.prod(shape[a] for a in self.axes)

    def features(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the statistics."""
        return tuple(n for a, n in enumerate(shape) if a not in self.axes)

    def sum(self, v: Array) -> Array:
        """Sums on this device."""
        blocks = self._blocks(v.shape)
        if blocks is None:
            return lax.reduce_sum(v, self.axes)
        return choose(
            v, gpu=functools.partial(_sum_blocks, blocks), default=lambda v: lax.reduce_sum(v, (0,))
        )

    def compensated_sums(self, *values: Array) -> list[Array]:
        """The same of several arrays, with what rounding takes from each partial sum carried along.

        Exact but for the last digit, in whatever order the values are added; some times slower, and not
        differentiable.
        """
        initial = [lax.full_like(v, 0, shape=()) for v in values]
        sums = lax.reduce(
            [(v, lax.full_like(v, 0)) for v in values],
            [(zero, zero) for zero in initial],
            lambda a, b: list(map(_add_exactly, a, b)),
            self.axes,
        )
        return [lax.add(total, lost) for total, lost in sums]

    def expand(self, s: Array) -> Array:
        """A statistic with axes of size one for those that were summed over."""
        return lax.expand_dims(s, self.axes)

    def broadcast(self, s: Array, shape: tuple[int, ...]) -> Array:
        """A statistic in the shape of x."""
        features = tuple(a for a in range(len(shape)) if a not in self.axes)
        return lax.broadcast_in_dim(s, shape, features)

    def spread(self, s: Array, like: Array) -> Array:
        """An array that broadcasts to the shape of `like`, broadcast."""
        # It is to vary over the devices that `like` varies over before it is large: the transpose of
        # what makes it vary is a sum over them.
        s = s + jnp.zeros_like(self.expand(lax.reduce_sum(like, self.axes)), dtype=s.dtype)
        shape = like.shape
        blocks = self._blocks(shape) if s.shape[:1] == (1,) else None
        if blocks is None:
            return _broadcast(shape, s)
        return choose(
            s,
            gpu=functools.partial(_spread_blocks, blocks, shape),
            default=functools.partial(_broadcast, shape),
        )

    def _blocks(self, shape):
        """Into how many blocks of rows a GPU is to divide a matrix; None for one."""
        rows = shape[0]
        if len(shape) != 2 or self.axes != (0,) or not known(rows) or rows not in _FEW_ROWS:
            return None
        return next((n for n in range(_BLOCKS, rows // _BLOCKS + 1) if rows % n == 0), None)


def known(*sizes: Any) -> bool:
    """Whether sizes are numbers, and no symbols of an export, with which nothing can be compared."""
    return all(isinstance(n, int) for n in sizes)


def is_small(x: Array) -> bool:
    """Whether XLA:CPU sums an array by itself, without its library."""
    return known(*x.shape) and math.prod(x.shape) <= _SMALL


def _add_exactly(a, b):
    """Two numbers, each with what was lost of it, to their sum and what is lost of that (Knuth)."""
    (a, a_lost), (b, b_lost) = a, b
    total = a + b
    b_rounded = total - a
    lost = (a - (total - b_rounded)) + (b - b_rounded)
    return total, (a_lost + b_lost) + lost


def _sum_blocks(blocks, v):
    rows, features = v.shape
    v = lax.reshape(v, (blocks, rows // blocks, features))
    # Without the barrier XLA makes one sum of the two.
    return lax.reduce_sum(lax.optimization_barrier(lax.reduce_sum(v, (1,))), (0,))


def _spread_blocks(blocks, shape, s):
    """Transposes into `_sum_blocks`."""
    rows, features = shape
    s = lax.optimization_barrier(lax.broadcast_in_dim(s, (blocks, features), (0, 1)))
    s = lax.broadcast_in_dim(s, (blocks, rows // blocks, features), (0, 2))
    return lax.reshape(s, shape)


def _broadcast(shape, s):
    return lax.broadcast_in_dim(s, shape, tuple(range(len(shape))))
