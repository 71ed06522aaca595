"""How y is made of the normalized x, and what of it the backward pass keeps."""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from jax import lax

from jbn import _dtypes
from jbn._statistics import Moments
from jbn._typing import Array
from jbn.ops.reduction import Reduction
from jbn.ops.rounded import rounded


class Affine(NamedTuple):
    """The parameters: of the shape of the statistics, or of the rank of x and broadcasting to it."""

    scale: Array | None
    bias: Array | None
    epsilon: Any


@dataclasses.dataclass(frozen=True)
class Form:
    """Plain batch norm: y is z, and x is kept.

        z = (x - mean) * gain + bias
        y = activation(z)

    The derivative rule asks for what follows; a variant with other arithmetic or another residual
    overrides it. Hashable, and equal where it computes the same: one compiled program serves all calls.

    Attributes:
        lossless: whether `deviation` is exact.
    """

    lossless: ClassVar[bool] = True

    def training_scale(
        self, reduction: Reduction, affine: Affine, m: Moments, dtype: jnp.dtype
    ) -> Array | None:
        """The scale that is used in training, for a y of `dtype`."""
        del reduction, m, dtype
        return affine.scale

    def activation(self, z: Array) -> Array:
        """y of z, in the dtype of z."""
        return z

    def keep(self, reduction: Reduction, x: Array, y: Array, m: Moments, affine: Affine) -> Any:
        """What the backward pass needs: one array of the size of x, others per channel."""
        del reduction, y, affine
        return x, jnp.asarray(m.mean)

    def deviation(self, reduction: Reduction, kept: Any) -> Array:
        """x less the rounded mean, from what was kept.

        What the remainder would take off each element is left to the rule, which takes it off the
        sums: per channel it costs nothing.
        """
        x, mean = kept
        x = x.astype(_dtypes.promote(x.dtype))
        return x - reduction.expand(mean.astype(x.dtype))

    def slope(self, kept: Any) -> Array | None:
        """dy / dz, from what was kept; None is 1."""
        del kept
        return None


def per_position(reduction: Reduction, s: Array, ndim: int, dtype: Any) -> Array:
    """A parameter or a statistic, broadcasting against x."""
    return (s if s.ndim == ndim else reduction.expand(s)).astype(dtype)


def inverse_deviation(var: Any, epsilon: Any) -> Array:
    """rsqrt(var + epsilon), in float32 at least."""
    var = jnp.asarray(var)
    var = var.astype(_dtypes.promote(var.dtype))
    return lax.rsqrt(var + jnp.asarray(epsilon, var.dtype))


def gain(reduction: Reduction, var: Array, affine: Affine, ndim: int) -> Array:
    """a = scale * rsqrt(var + epsilon), broadcasting against x."""
    rstd = reduction.expand(inverse_deviation(var, affine.epsilon))
    if affine.scale is None:
        return rstd
    dtype = _dtypes.promote(rstd.dtype, affine.scale.dtype)
    return per_position(reduction, affine.scale, ndim, dtype) * rstd.astype(dtype)


def scale_and_shift(reduction: Reduction, x: Array, m: Moments, affine: Affine) -> Array:
    """z = (x - mean) * a + (bias - remainder * a): the mean is subtracted as a pair, see `Moments`."""
    var = jnp.asarray(m.var)
    a = gain(reduction, var, affine, x.ndim)
    mean = jnp.asarray(m.mean)
    given = (x, mean, a) if affine.bias is None else (x, mean, a, affine.bias)
    dtype = _dtypes.promote(*(v.dtype for v in given))
    a = a.astype(dtype)
    # A mean without a remainder was given, and is of no x that the compiler might round differently.
    x = x.astype(dtype) if m.remainder is None else rounded(x, dtype)
    z = (x - reduction.expand(mean.astype(dtype))) * a
    bias = None
    if affine.bias is not None:
        bias = per_position(reduction, affine.bias, x.ndim, dtype)
    if m.remainder is not None:
        correction = reduction.expand(jnp.asarray(m.remainder, dtype)) * a
        bias = -correction if bias is None else bias - correction
    return z if bias is None else z + bias
