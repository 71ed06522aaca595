"""Which dtype the arithmetic, the statistics and the output are in."""

from typing import Any

import jax
import jax.numpy as jnp


def promote(*dtypes: Any) -> jnp.dtype:
    """JAX's standard promotion, float32 at least, also where the user asked for strict promotion.

    Strict mode forbids implicit promotion; what is decided here is applied by explicit casts.
    """
    result = jnp.dtype(jnp.float32)
    with jax.numpy_dtype_promotion("standard"):
        for dtype in dtypes:
            result = jnp.promote_types(result, dtype)
    return result


def real(dtype: Any) -> jnp.dtype:
    """The dtype of |v| for v of `dtype`: variances, weights and counts are real."""
    return jnp.finfo(dtype).dtype


def output(x: jax.Array, dtype: Any) -> jnp.dtype:
    """The dtype of y: as asked for, else that of `x`; complex stays complex."""
    if dtype is None:
        return x.dtype
    if not jnp.issubdtype(dtype, jnp.inexact):
        raise TypeError(f"`dtype` must be a floating-point or complex dtype, got {dtype!r}")
    return promote(dtype, x.dtype) if jnp.iscomplexobj(x) else jnp.dtype(dtype)
