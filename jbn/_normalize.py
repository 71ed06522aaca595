"""y = (x - mean) * rsqrt(var + epsilon) * scale + bias, and its derivative rule."""

import functools
import operator
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jbn import _checks, _dtypes
from jbn._moments import (
    Moments,
    Reduction,
    as_weights,
    batch_moments,
    deviation,
    deviation_again,
    differentiable_moments,
    moments_tangent,
    without_zeros,
    zeros_for_none,
)
from jbn._remat import named

Array = jax.Array


def normalize(
    x: Any,
    moments: Moments,
    params: Mapping[str, Any] | None = None,
    *,
    axis: _checks.Axis = -1,
    epsilon: Any = 1e-5,
    mask: Any = None,
    dtype: Any = None,
) -> Array:
    """Normalizes with given statistics, then scales and shifts.

        y = (x - mean) * rsqrt(var + epsilon) * scale + bias

    computed as `(x - mean) * a + (bias - remainder * a)` with `a = scale * rsqrt(var + epsilon)`.

    Args:
        x: (..., C) array, real, integer or complex.
        moments: `Moments` with `mean` and `var` of the shape of the feature axes; from `jbn.moments`
            or made of running statistics: `Moments(batch_stats["mean"], batch_stats["var"])`.
        params: mapping with "scale" and "bias", each (C,) and each optional. Default none of them.
        axis: the feature axis or axes. Default -1.
        epsilon: > 0, added to the variance. Default 1e-5 (Flax, Haiku, PyTorch; Keras has 1e-3).
        mask: as in `jbn.moments`. The output does not depend on it; the gradient of the parameters
            leaves out masked values that are not finite. Default None.
        dtype: dtype of the output. Default: that of `x` (float32 for integers).

    Returns:
        y of the shape of `x`. The arithmetic is in float32 at least.

    Raises:
        ValueError, TypeError: an argument is not of the form above.

    Example:
        >>> import jax.numpy as jnp, jbn
        >>> m = jbn.Moments(mean=jnp.array([3.]), var=jnp.array([2.]))
        >>> print(jbn.normalize(jnp.array([[1.], [5.]]), m).round(2).ravel())
        [-1.41  1.41]
    """
    x = _checks.input_array(x)
    features = _checks.feature_axes(axis, x.ndim)
    shape = tuple(x.shape[a] for a in features)
    params = {} if params is None else params
    params = _checks.params_dict(params, shape)
    for name in ("mean", "var"):
        _checks.per_channel(f"moments.{name}", getattr(moments, name), shape)
    epsilon = _checks.epsilon_value(epsilon)
    reduction = Reduction(_checks.reduction_axes(features, x.ndim))
    weights = as_weights(mask, x)
    m = Moments(jnp.asarray(moments.mean), jnp.asarray(moments.var), None, moments.remainder)
    with jax.named_scope("jbn.normalize"):
        y = _jitted_apply(reduction, x, weights, m, params.get("scale"), params.get("bias"), epsilon)
    return y.astype(_dtypes.output(x, dtype))


def gain(var: Array, scale: Array | None, epsilon: Any) -> Array:
    """a = scale * rsqrt(var + epsilon), per channel."""
    a = jax.lax.rsqrt(var + jnp.asarray(epsilon, var.dtype))
    if scale is None:
        return a
    dtype = _promote(a, scale)
    return scale.astype(dtype) * a.astype(dtype)


def _promote(*arrays: Array | None) -> jnp.dtype:
    return _dtypes.promote(*(a.dtype for a in arrays if a is not None))


def affine(reduction: Reduction, x: Array, m: Moments, scale, bias, epsilon) -> Array:
    """(x - mean) * a + (bias - remainder * a): the mean is subtracted as a pair, see `Moments`."""
    a = gain(m.var, scale, epsilon)
    dtype = _promote(x, m.mean, a, bias)

    def expand(v):
        return jax.lax.expand_dims(v.astype(dtype), reduction.axes)

    y = (x.astype(dtype) - expand(m.mean)) * expand(a)
    if m.remainder is not None:
        correction = m.remainder.astype(dtype) * a.astype(dtype)
        return y + expand((0 if bias is None else bias.astype(dtype)) - correction)
    return y if bias is None else y + expand(bias)


def affine_tangent(reduction: Reduction, y: Array, d: Array, m: Moments, small, t, tm, tsmall) -> Array:
    """Tangent of `affine`: a * (t - dmean) + (x - mean) * da + dbias, linear in the tangents.

    With dmean and dvar from `moments_tangent` it transposes into the analytic backward pass: the
    sums of ct and ct * d, and one elementwise pass over ct and d. A tangent of None is zero, and
    what it would multiply is neither computed nor kept.
    """
    (scale, _, epsilon), (tscale, tbias, tepsilon) = small, tsmall
    a = gain(m.var, scale, epsilon)

    def negative(*factors):
        return -functools.reduce(operator.mul, (f.astype(y.dtype) for f in factors))

    def expand(v):
        return jax.lax.expand_dims(v.astype(y.dtype), reduction.axes)

    terms = [] if t is None else [expand(a) * t.astype(y.dtype)]
    per_channel = [negative(a, v) for v in (tm.mean, tm.remainder) if v is not None]
    given = (tm.var, tscale, tepsilon)
    if any(v is not None for v in given):
        primals = (m.var, scale, epsilon)
        zeros = jax.tree.map(jnp.zeros_like, primals)
        tangents = tuple(z if v is None else v for z, v in zip(zeros, given, strict=True))
        _, ta = jax.jvp(gain, primals, tangents)
        terms.append(d.astype(y.dtype) * expand(ta))
        if m.remainder is not None:
            per_channel.append(negative(m.remainder, ta))
    if tbias is not None:
        per_channel.append(tbias.astype(y.dtype))
    if not terms:
        terms.append(jnp.zeros_like(y))
    if per_channel:
        terms.append(expand(functools.reduce(operator.add, per_channel)))
    return functools.reduce(operator.add, terms)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _apply(reduction, x, weights, m, scale, bias, epsilon):
    del weights
    return affine(reduction, x, m, scale, bias, epsilon)


@functools.partial(_apply.defjvp, symbolic_zeros=True)
def _apply_jvp(reduction, primals, tangents):
    x, weights, m, *small = primals
    t, _, tm, *tsmall = without_zeros(tangents)
    y = _apply(reduction, *primals)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def tangent(y, x, weights, m, small, t, tm, tsmall):
        d = deviation_again(reduction, x, weights, m)
        return affine_tangent(reduction, y, d, m, small, t, tm, tsmall)

    return y, tangent(y, x, weights, m, small, t, tm, tsmall)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def normalize_batch(
    reduction: Reduction,
    x: Array,
    weights: Array | None,
    scale: Array | None,
    bias: Array | None,
    epsilon: Any,
) -> tuple[Array, Moments]:
    """`normalize` with the `moments` of `x` itself, as one operation with one derivative rule.

    The composition of the two public functions has the same value. Differentiated as one, a half
    precision `dx` is rounded once instead of twice, and x is the only large residual.
    """
    m = batch_moments(reduction, x, weights)
    return affine(reduction, x, m, scale, bias, epsilon), m


@functools.partial(normalize_batch.defjvp, symbolic_zeros=True)
def _normalize_batch_jvp(reduction, primals, tangents):
    x, weights, *small = primals
    t, tweights, *tsmall = without_zeros(tangents)
    # In two steps, so that a policy of `jax.checkpoint` may save the moments and not y.
    m = named(differentiable_moments(reduction, x, weights))
    y = _apply(reduction, x, weights, m, *small)

    # Recomputed in the backward pass, d leaves x itself, in its own dtype, as the one large residual.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def tangent(y, x, weights, m, small, t, tweights, tsmall):
        d = deviation(reduction, x, weights, m)
        t = None if t is None else t.astype(d.dtype)
        tm = moments_tangent(reduction, d, weights, m, t, tweights)
        d = deviation_again(reduction, x, weights, m)
        return affine_tangent(reduction, y, d, m, small, t, tm, tsmall), tm

    ty, tm = tangent(y, x, weights, m, small, t, tweights, tsmall)
    return (y, m), (ty, zeros_for_none(m, tm))


_jitted_apply = jax.jit(_apply, static_argnums=0)
