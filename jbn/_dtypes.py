"""Which dtype the arithmetic, the statistics and the output are in."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


def promote(*dtypes: DTypeLike) -> jnp.dtype:
    """JAX's standard promotion, float32 at least, also where the user asked for strict promotion.

    Strict mode forbids implicit promotion; what is decided here is applied by explicit casts.
    """
    result = jnp.dtype(jnp.float32)
    with jax.numpy_dtype_promotion("standard"):
        for dtype in dtypes:
            # The 8 bit floats, which JAX promotes to nothing, fit into float32.
            if jnp.dtype(dtype).itemsize > 1:
                result = jnp.promote_types(result, dtype)
    return result


def real(dtype: DTypeLike) -> jnp.dtype:
    """The dtype of |v| for v of `dtype`: variances, weights and counts are real."""
    return jnp.finfo(dtype).dtype


def output(x: jax.Array, dtype: DTypeLike | None) -> jnp.dtype:
    """The dtype of y: as asked for, else that of `x`; complex stays complex."""
    if dtype is None:
        return x.dtype
    dtype = floating("dtype", dtype)
    return promote(dtype, x.dtype) if jnp.iscomplexobj(x) else dtype


def floating(name: str, dtype: DTypeLike) -> jnp.dtype:
    """A dtype, which must be floating-point or complex."""
    try:
        known = jnp.dtype(dtype)
    except TypeError:
        known = None
    if known is None or not jnp.issubdtype(known, jnp.inexact):
        raise TypeError(f"`{name}` must be a floating-point or complex dtype, got {dtype!r}")
    return known
