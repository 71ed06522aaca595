"""x with the digits that its dtype has, and not those that a compiler knows in addition.

What makes x may be compiled into what uses it. XLA then takes a cast to half precision and back for
none, and a product and the difference after it become one instruction that does not round in between.
x - mean would be of another x than the mean is of: not 0 in a constant channel.
"""

import functools
from collections.abc import Callable

import jax.numpy as jnp
from jax import lax

from jbn._typing import Array
from jbn.ops.platform import choose
from jbn.ops.reduction import is_small


def rounded(x: Array, dtype: jnp.dtype) -> Array:
    """x in `dtype`, a wider one or its own, as if it were read from memory."""
    return _rounded(_uncontracted, x, dtype)


def rounded_for_sum(x: Array, dtype: jnp.dtype) -> Array:
    """The same, for a sum.

    A large one XLA:CPU hands to a library that contracts nothing, but not with a select in it.
    """
    return _rounded(_uncontracted if is_small(x) else _unchanged, x, dtype)


def widened(x: Array, dtype: jnp.dtype) -> Array:
    """The same, for what is kept: x itself, and no copy, where it is of that dtype."""
    return x if x.dtype == dtype else rounded(x, dtype)


def _rounded(on_cpu: Callable[[Array], Array], x: Array, dtype: jnp.dtype) -> Array:
    if jnp.iscomplexobj(x):
        part = functools.partial(_rounded, on_cpu, dtype=jnp.finfo(dtype).dtype)
        return lax.complex(part(x.real), part(x.imag))
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x.astype(dtype)
    info = jnp.finfo(x.dtype)
    if info.bits == 16 and x.dtype != dtype:
        # With the exponents of the wider dtype: else what is subnormal in float16 would become 0.
        return lax.reduce_precision(x.astype(dtype), jnp.finfo(dtype).nexp, info.nmant)
    # A TPU's vector unit rounds products, and sums of a select are not part of the convolution before.
    return choose(x, cpu=on_cpu, gpu=_uncontracted, default=_unchanged).astype(dtype)


def _uncontracted(x):
    """x: no instruction contracts what is on both sides of a select."""
    return lax.select(lax.is_finite(x), x, lax.add(x, x))


def _unchanged(x):
    return x
