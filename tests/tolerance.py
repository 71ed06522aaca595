"""Every tolerance of the tests comes from here."""

import jax.numpy as jnp


def tolerance(dtype, reduced: int = 1) -> dict[str, float]:
    """Relative and absolute tolerance for values of order one computed in `dtype`.

    A few roundings, and for a sum of `reduced` terms the growth of its rounding error, which for
    sums in blocks is slower than the square root of the number of terms.
    """
    eps = float(jnp.finfo(dtype).eps)
    if eps > 1e-5:
        return {"rtol": 2 * eps, "atol": 2 * eps}
    bound = eps * (8 + reduced**0.5)
    return {"rtol": bound, "atol": bound}
