"""Batch norm and an invertible activation as one operation that keeps its output, not its input."""

import dataclasses
import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jbn import _checks
from jbn._batch_norm import Norm, Operation, call, init
from jbn._moments import (
    batch_moments,
    moments_tangent,
    without_padding,
    without_zeros,
    zeros_for_none,
)
from jbn._normalize import affine, affine_tangent, gain
from jbn.ops.xla import again

Array = jax.Array
Activation = Literal["leaky_relu", "elu", "identity"]

# A scale below so many roundings of its bias leaves nothing of x in y.
_ROUNDINGS = 8.0


def inplace(
    activation: Activation = "leaky_relu", *, negative_slope: float = 0.01, alpha: float = 1.0
) -> Norm:
    """In-place activated batch norm: one tensor is kept for the backward pass, the output.

        z = (x - mean) * rsqrt(var + epsilon) * scale + bias
        y = activation(z)

    Batch norm keeps x, the activation z, the next layer y. Here the backward pass reads y, which the
    next layer keeps anyway, and inverts: z from y, x - mean from z. The values, the parameters and the
    statistics are those of batch norm followed by the activation, so that checkpoints are
    interchangeable; every derivative works.

    The scale may be of any sign and size. Where it is so small against the bias that rounding leaves
    nothing of x in y, y could not be inverted: in training |scale| counts as at least 8 roundings of
    |bias| in the dtype of y, which moves y by so many roundings for each deviation that x is from its
    mean, and as at least 1e-30, so that a scale and a bias of zero learn. At the kink of leaky_relu, z
    then has the sign that x gives it.

    What the gradients read from y is (x - mean) / deviation, to one rounding of max(|z|, |bias|)
    divided by |scale|. elu loses more the nearer y is to -alpha, from where nothing leads back: z
    counts as log(eps) there, eps being that of float32.

    Args:
        activation: "leaky_relu", "elu" or "identity".
        negative_slope: of leaky_relu, in (0, 1]. Default 0.01.
        alpha: of elu, > 0. Default 1.

    Returns:
        A `Norm`, for `norm=` of the Flax layers or for its `init` and `apply`, which take what
        `jbn.init` and `jbn.batch_norm` take; real `x` only.

    Raises:
        ValueError: an argument is not of the form above.
        TypeError: from `apply`, where `x` is complex.

    Example:
        >>> import jax.numpy as jnp, jbn
        >>> x = jnp.array([[1.], [2.], [3.], [4.], [5.]])
        >>> norm = jbn.inplace("leaky_relu", negative_slope=0.1)
        >>> params, batch_stats = norm.init(1)
        >>> y, batch_stats = norm.apply(x, params, batch_stats, train=True)
        >>> print(y.round(2).ravel())
        [-0.14 -0.07  0.    0.71  1.41]

    References:
        Rota Bulò, Porzi and Kontschieder (2018), "In-Place Activated BatchNorm for Memory-Optimized
        Training of DNNs", arXiv:1712.02616.
    """
    _checks.choice("activation", activation, Activation)
    if not 0 < negative_slope <= 1:
        raise ValueError(f"`negative_slope` must lie in (0, 1] to be inverted, got {negative_slope!r}")
    if not 0 < alpha < math.inf:
        raise ValueError(f"`alpha` must be a positive finite number, got {alpha!r}")
    operation = _InPlace(activation, float(alpha if activation == "elu" else negative_slope))

    def apply(x, params, batch_stats, *, train, **options):
        if jnp.iscomplexobj(x):
            raise TypeError(f"`x` must be real for an in-place batch norm, got {jnp.asarray(x).dtype}")
        return call(operation, x, params, batch_stats, train=train, **options)

    return Norm(init, apply)


@dataclasses.dataclass(frozen=True)
class _InPlace(Operation):
    name: Activation
    parameter: float  # alpha of elu, else the slope

    def train(self, reduction, dtype, x, weights, scale, bias, epsilon):
        return _normalize_and_activate(self, reduction, dtype, x, weights, scale, bias, epsilon)

    # Without selects, which XLA:CPU does not compute inside its sums but writes to memory for them.

    def activation(self, z):
        if self.name == "leaky_relu":
            return jnp.maximum(z, self.parameter * z)
        if self.name == "elu":
            return jnp.maximum(z, 0) + self.parameter * jnp.expm1(jnp.minimum(z, 0))
        return z

    def inverse(self, y, parameter):
        """z of y; `parameter` is this operation's, as an array of its own for each sum."""
        if self.name == "leaky_relu":
            return jnp.minimum(y, y / parameter)
        if self.name == "elu":
            lowest = -1 + float(jnp.finfo(y.dtype).eps)
            return jnp.maximum(y, 0) + jnp.log1p(jnp.maximum(jnp.minimum(y, 0) / parameter, lowest))
        return y

    def slope(self, y):
        """dy / dz, of y; None for 1."""
        side = jnp.sign(jnp.sign(y) + 0.5)  # 1 for y >= 0, else -1
        if self.name == "leaky_relu":
            return jnp.maximum(side, self.parameter)
        if self.name == "elu":
            return jnp.maximum(side, 0) - jnp.minimum(side, 0) * (y + self.parameter)
        return None


def _invertible(scale: Array | None, bias: Array | None, like: Array, dtype: Any) -> Array:
    """The scale that training uses: see `inplace`."""
    scale = jnp.ones_like(like) if scale is None else scale.astype(like.dtype)
    least = jnp.full_like(scale, 1e-30)
    if bias is not None:
        rounding = float(jnp.finfo(dtype).eps)
        least = jnp.maximum(least, _ROUNDINGS * rounding * jnp.abs(bias.astype(like.dtype)))
    size = jnp.maximum(jnp.abs(scale), least)
    return jnp.where(scale < 0, -size, size)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _normalize_and_activate(operation, reduction, dtype, x, weights, scale, bias, epsilon):
    m = batch_moments(reduction, x, weights)
    scale = _invertible(scale, bias, m.var, dtype)
    z = affine(reduction, x, m, scale, bias, epsilon)
    return operation.activation(z).astype(dtype), m


@functools.partial(_normalize_and_activate.defjvp, symbolic_zeros=True)
def _normalize_and_activate_jvp(operation, reduction, dtype, primals, tangents):
    _, weights, *small = primals
    t, tweights, *tsmall = without_zeros(tangents)
    y, m = _normalize_and_activate(operation, reduction, dtype, *primals)

    # Recomputed in the backward pass, all of it from y, which is the one large residual.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def tangent(y, weights, m, small, t, tweights, tsmall):
        scale, bias, epsilon = small
        m = dataclasses.replace(m, remainder=jnp.zeros_like(m.mean))

        def deviation(y, bias, a, parameter):
            z = operation.inverse(y.astype(m.mean.dtype), parameter)
            if bias is not None:
                z = z - jax.lax.expand_dims(bias.astype(z.dtype), reduction.axes)
            d = z / jax.lax.expand_dims(a.astype(z.dtype), reduction.axes)
            return without_padding(d, weights)

        a = gain(m.var, _invertible(scale, bias, m.var, dtype), epsilon)
        kept = y, bias, a, jnp.asarray(operation.parameter, m.mean.dtype)
        d, d_again = deviation(*kept), deviation(*again(*kept))
        t = None if t is None else t.astype(d.dtype)
        tm = moments_tangent(reduction, d, weights, m, t, tweights)
        tz = affine_tangent(reduction, d, d_again, m, small, t, tm, tsmall)
        y = y.astype(tz.dtype)
        slope = operation.slope(y if weights is None else jnp.where(jnp.isfinite(y), y, 0))
        return (tz if slope is None else slope * tz).astype(dtype), tm

    ty, tm = tangent(y, weights, m, small, t, tweights, tsmall)
    return (y, m), (ty, zeros_for_none(m, tm))
