"""Running statistics: exponential or cumulative averages of the batches' means and variances."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jbn import _checks, _dtypes
from jbn._moments import Moments

Array = jax.Array


def update_running(
    batch_stats: Mapping[str, Any],
    moments: Moments,
    *,
    momentum: Any = 0.99,
    running_variance: _checks.RunningVariance = "biased",
) -> dict[str, Array]:
    """Running statistics after one more batch.

        new = momentum * old + (1 - momentum) * batch                             (momentum a number)
        new = (count - 1) / count * old + 1 / count * batch,  count = count + 1   (momentum None)

    for `mean` and `var` alike. `momentum` multiplies the OLD value, as in Flax, Keras, Haiku and
    Equinox; PyTorch's momentum m is 1 - m here. A channel without samples, or whose batch statistics
    are not finite, keeps its old values. No gradient flows through the result.

    Args:
        batch_stats: mapping with "mean" and "var", each (C,), and "count", (C,), for the cumulative
            average. Their dtypes are kept, except that a complex batch makes a real mean complex.
        moments: statistics of the batch, from `jbn.moments`.
        momentum: weight of the old values, in [0, 1]; may be traced (a schedule). None is the
            cumulative average, the plain mean over all batches so far. Default 0.99.
        running_variance: "biased" averages sum(d^2) / n (Flax, Keras), "unbiased" sum(d^2) / (n - 1)
            (PyTorch); where n is 1 or less, both are the biased one. Default "biased".

    Returns:
        A new dict with the keys of `batch_stats`.

    Raises:
        ValueError: an argument is not of the form above.

    Example:
        >>> import jax.numpy as jnp, jbn
        >>> _, batch_stats = jbn.init(1)
        >>> m = jbn.moments(jnp.array([[1.], [2.], [3.], [4.], [5.]]))
        >>> print(jbn.update_running(batch_stats, m, momentum=0.9))
        {'mean': Array([0.3], dtype=float32), 'var': Array([1.1], dtype=float32)}
    """
    _checks.momentum_value(momentum)
    _checks.choice("running_variance", running_variance, _checks.RunningVariance)
    batch_stats = _checks.batch_stats_dict(batch_stats, jnp.shape(moments.mean), momentum is None)
    if running_variance == "unbiased" and moments.count is None:
        raise ValueError(
            "`running_variance='unbiased'` needs the number of samples, got moments with count=None"
        )
    return updated(batch_stats, moments, decay(momentum), running_variance)


def decay(momentum: Any) -> tuple[Any, Any] | None:
    """Weights of the old and the new value; 1 - momentum is taken before it is rounded to float32."""
    return None if momentum is None else (momentum, 1 - momentum)


def updated(
    batch_stats: Mapping[str, Any],
    moments: Moments,
    weights: tuple[Any, Any] | None,
    running_variance: _checks.RunningVariance,
) -> dict[str, Array]:
    """`update_running` on checked arguments, with `decay(momentum)` for the momentum."""
    batch = {"mean": moments.mean, "var": moments.var}
    n = moments.count
    if running_variance == "unbiased":
        batch["var"] = moments.var * jnp.where(n > 1, n / jnp.where(n > 1, n - 1, 1), 1)
    valid = jnp.isfinite(moments.mean) & jnp.isfinite(moments.var)
    if n is not None:
        valid = valid & (n > 0)

    new = dict(batch_stats)
    if weights is None:
        new["count"] = new["count"] + valid.astype(new["count"].dtype)
        seen = jnp.maximum(new["count"], 1).astype(_dtypes.real(moments.mean.dtype))
        weights = (seen - 1) / seen, 1 / seen
    for name, value in batch.items():
        old = new[name]
        if jnp.iscomplexobj(value) and not jnp.iscomplexobj(old):
            old = old.astype(_dtypes.promote(old.dtype, value.dtype))
        kept, taken = (jnp.asarray(w, old.dtype) for w in weights)
        # Not a select between old and new: under explicit sharding these may be sharded differently.
        one = valid.astype(old.dtype)
        value = jnp.where(valid, value, 0).astype(old.dtype)
        new[name] = jax.lax.stop_gradient((kept * one + (1 - one)) * old + taken * one * value)
    return new
