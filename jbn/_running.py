"""Running statistics: exponential or cumulative averages of the batches' means and variances."""

import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jbn import _checks, _dtypes
from jbn._statistics import Moments
from jbn._typing import Array, BatchStats, RunningVariance
from jbn.ops.local_moments import is_finite

# What a sum of weights may be off by.
_ROUNDING = 1e-5


def update_running(
    batch_stats: BatchStats,
    moments: Moments,
    *,
    momentum: ArrayLike | None = 0.99,
    running_variance: RunningVariance = "biased",
) -> dict[str, Array]:
    """Running statistics after one more batch.

        new = momentum * old + (1 - momentum) * batch                             (momentum a number)
        new = (count - 1) / count * old + 1 / count * batch,  count = count + 1   (momentum None)

    for `mean` and `var` alike. `momentum` multiplies the OLD value, as in Flax, Keras, Haiku and
    Equinox; PyTorch's momentum m is 1 - m here. A channel without samples, or whose batch statistics
    are not finite, keeps its old values. No gradient flows through the result.

    Args:
        batch_stats: mapping with "mean" and "var", each (C,), and "count", (C,), for the cumulative
            average. Their dtypes are kept, except that half precision becomes float32, as a step of 1%
            would be rounded away in it, and that a complex batch makes a real mean complex.
        moments: statistics of the batch, from `jbn.moments`.
        momentum: weight of the old values, in [0, 1]; may be traced (a schedule). None is the
            cumulative average, the plain mean over all batches so far. Default 0.99.
        running_variance: "biased" averages sum(d^2) / n (Flax, Keras), "unbiased" sum(d^2) / (n - 1)
            (PyTorch); where n is 1 or less, both are the biased one. Default "biased".

    Returns:
        A new dict with the keys of `batch_stats`.

    Raises:
        ValueError, TypeError: an argument is not of the form above.

    Example:
        >>> import jax.numpy as jnp, jbn
        >>> _, batch_stats = jbn.init(1)
        >>> m = jbn.moments(jnp.array([[1.], [2.], [3.], [4.], [5.]]))
        >>> print(jbn.update_running(batch_stats, m, momentum=0.9))
        {'mean': Array([0.3], dtype=float32), 'var': Array([1.1], dtype=float32)}
    """
    momentum = _checks.momentum_value(momentum)
    _checks.choice("running_variance", running_variance, RunningVariance)
    needed = ("mean", "var", *(["count"] if running_variance == "unbiased" else []))
    moments = _checks.moments_arrays(moments, None, needed)
    batch_stats = _checks.batch_stats_dict(batch_stats, jnp.shape(moments.mean), momentum is None)
    return updated(batch_stats, moments, decay(momentum), running_variance)


def decay(momentum: ArrayLike | None) -> tuple[ArrayLike, ArrayLike] | None:
    """Weights of the old and the new value; 1 - momentum is taken before it is rounded to float32."""
    return None if momentum is None else (momentum, 1 - momentum)


def updated(
    batch_stats: dict[str, Array],
    m: Moments,
    weights: tuple[ArrayLike, ArrayLike] | None,
    running_variance: RunningVariance,
) -> dict[str, Array]:
    """`update_running` on checked arguments, with `decay(momentum)` for the momentum."""
    mean, var, n = jnp.asarray(m.mean), jnp.asarray(m.var), m.count
    valid = lax.bitwise_and(is_finite(mean), is_finite(var))
    if n is not None:
        valid = lax.bitwise_and(valid, lax.gt(n, lax.full_like(n, 0)))
    if running_variance == "unbiased" and n is not None:
        # Weights that sum to 1 but for rounding are those of one sample, and not of 1e7 less one.
        several = n > 1 + _ROUNDING
        var = var * jnp.where(several, n / jnp.where(several, n - 1, 1), 1)

    new = dict(batch_stats)
    if weights is None:
        new["count"] = new["count"] + valid.astype(new["count"].dtype)
        seen = jnp.maximum(new["count"], 1).astype(_dtypes.real(mean.dtype))
        weights = (seen - 1) / seen, 1 / seen
    for name, value in (("mean", mean), ("var", var)):
        old = new[name]
        wide = [old.dtype, value.dtype] if jnp.iscomplexobj(value) else [old.dtype]
        old = old.astype(_dtypes.promote(*wide))
        value = lax.select(valid, value, lax.full_like(value, 0)).astype(old.dtype)
        kept, taken = (jnp.asarray(w, old.dtype) for w in weights)
        # Not a select between old and new: under explicit sharding these may be sharded differently.
        one = valid.astype(old.dtype)
        new[name] = lax.stop_gradient((kept * one + (1 - one)) * old + taken * one * value)
    return new
