"""The batch axis divided in two: one of groups, one of the examples in each."""

import dataclasses
import math

import jax.numpy as jnp
from jax import lax

from jbn import _checks
from jbn._typing import Array


@dataclasses.dataclass(frozen=True)
class Grouping:
    """`batch` examples along `axis` as `groups` of `size`, filled up at the end where they are fewer.

    Contiguous groups are (groups, size), interleaved ones (size, groups): no value moves.
    """

    axis: int
    batch: int
    groups: int
    size: int
    interleaved: bool

    @property
    def filled(self) -> int:
        """How many examples it takes to make the groups equal."""
        return self.groups * self.size - self.batch

    def features(self, axes: tuple[int, ...]) -> tuple[int, ...]:
        """The feature axes of a divided array: the old ones, and that of the groups."""
        moved = (a if a < self.axis else a + 1 for a in axes)
        return tuple(sorted((*moved, self.axis + self.interleaved)))

    def divide(self, v: Array) -> Array:
        """An array of the rank of x with its batch axis divided; it may broadcast along that."""
        if v.shape[self.axis] != self.batch:
            return lax.expand_dims(v, (self.axis,))
        if self.filled:
            v = jnp.pad(v, [(0, self.filled if a == self.axis else 0) for a in range(v.ndim)])
        pair = (self.size, self.groups) if self.interleaved else (self.groups, self.size)
        return v.reshape(*v.shape[: self.axis], *pair, *v.shape[self.axis + 1 :])

    def divide_mask(self, mask: Array) -> Array:
        """The same of a mask, in which the filling does not count."""
        if self.filled and mask.shape[self.axis] != self.batch:
            mask = jnp.repeat(mask, self.batch, self.axis)
        return self.divide(mask)

    def join(self, v: Array) -> Array:
        """The inverse of `divide` on an array of the shape of x."""
        filled = self.groups * self.size
        v = v.reshape(*v.shape[: self.axis], filled, *v.shape[self.axis + 2 :])
        return lax.slice_in_dim(v, 0, self.batch, axis=self.axis)

    def per_group(self, s: Array) -> Array:
        """A statistic of the whole batch for each of the groups."""
        shape = (*s.shape[: self.axis], self.groups, *s.shape[self.axis :])
        s = jnp.broadcast_to(lax.expand_dims(s, (self.axis,)), shape)
        # Of a parameter's gradient XLA would make one more sum over the whole batch.
        return lax.optimization_barrier(s)


def divided(
    shape: tuple[int, ...],
    features: tuple[int, ...],
    groups: int | None,
    size: int | None,
    interleaved: bool,
    uneven: bool,
) -> Grouping:
    """The batch, the first axis that holds no features, in so many groups or in groups of that size."""
    axis, *_ = example_axes(features, len(shape))
    batch = shape[axis]
    wanted = f"{groups} groups" if size is None else f"groups of {size}"
    size = size or max(1, math.ceil(batch / (groups or 1)))
    groups = groups or max(1, math.ceil(batch / size))
    if groups * size != batch and batch and not uneven:
        raise ValueError(
            f"`x` has {batch} examples, which do not divide into {wanted}: change the batch, drop its "
            f"rest, or allow groups of different sizes with `uneven=True`"
        )
    return Grouping(axis, batch, groups, size, interleaved)


def example_axes(features: tuple[int, ...], ndim: int) -> tuple[int, ...]:
    """The axes that hold no features, of which the first is that of the examples."""
    reduced = _checks.reduction_axes(features, ndim)
    if not reduced:
        raise ValueError(
            f"`axis` must leave an axis of `x` for the examples, got {features} of {ndim} axes"
        )
    return reduced
