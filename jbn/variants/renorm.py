"""Batch renormalization: training sees what inference will, up to what the limits leave over."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from jbn import _checks, _dtypes
from jbn._norm import Norm
from jbn.variants.by_moments import ByMoments, normalized_by, running

RenormRunning = Literal["deviation", "variance"]
Limit = float | Callable[[Any], Any]
_LEAST = {"r_max": 1, "d_max": 0}


def renorm(r_max: Limit = 3.0, d_max: Limit = 5.0, *, running: RenormRunning = "deviation") -> Norm:
    """Batch renormalization: the batch's statistics corrected towards the running ones.

        s = sqrt(var_B + epsilon);  sigma = sqrt(var + epsilon), of the running variance
        r = stop_gradient(clip(s / sigma, 1 / r_max, r_max))
        d = stop_gradient(clip((mean_B - mean) / sigma, -d_max, d_max))
        y = scale * ((x - mean_B) / s * r + d) + bias

    Within the limits y is that of inference, (x - mean) / sigma, while the gradients are those of batch
    norm. For small batches, for batches that are not drawn alike, and for deep reinforcement learning.
    With r_max 1 and d_max 0 it is batch norm: begin with that, `jbn.ioffe_warmup` or
    `jbn.crossq_warmup`, until the running statistics mean something. It costs what batch norm costs.

    `running` says what is averaged:

        "deviation"  s, as in the paper, Keras and tf_keras; `var` is its square less epsilon
        "variance"   var_B, as in batch norm (sbx, CrossQ; torchrl and sb3-contrib the unbiased one)

    sbx adds epsilon to the corrected variance instead, var_B + r^2 * epsilon, the same where the
    variance is large against it; its gradient is NaN where the variance is 0. Keras is unclipped unless
    told otherwise, `r_max=inf, d_max=inf` here.

    Args:
        r_max, d_max: the limits, >= 1 and >= 0: numbers, or schedules, functions of the number of
            training steps before this one, which `batch_stats` then counts in `steps`.
        running: see above.

    Returns:
        A `Norm`. Its `apply` takes `r_max` and `d_max` too, for this call, traced if need be.

    Raises:
        ValueError: an argument is not of the form above; from `apply`, `running_variance="unbiased"`
            where deviations are averaged.
        TypeError: from `apply`, where `x` is complex.

    Example:
        >>> import jax.numpy as jnp, jbn
        >>> norm = jbn.renorm(r_max=3.0, d_max=5.0)
        >>> params, batch_stats = norm.init(1)             # mean 0, variance 1
        >>> x = jnp.array([[0.], [1.]])
        >>> y, batch_stats = norm.apply(x, params, batch_stats, train=True)
        >>> print(y.round(2).ravel())                      # batch norm: -1, 1
        [0. 1.]

    References:
        Ioffe (2017), "Batch Renormalization: Towards Reducing Minibatch Dependence in Batch-Normalized
        Models", arXiv:1702.03275; Bhatt et al. (2024), "CrossQ", arXiv:1902.05605.
    """
    return Renorm(r_max, d_max, running)


@dataclasses.dataclass(frozen=True)
class Renorm(ByMoments):
    """See `renorm`."""

    r_max: Limit
    d_max: Limit
    running: RenormRunning

    def __post_init__(self):
        for name in _LEAST:
            if not callable(limit := getattr(self, name)):
                _check_limit(name, limit)
        _checks.choice("running", self.running, RenormRunning)

    def init(self, features, **options):
        """Those of batch norm, and `steps` where a limit is a schedule."""
        params, batch_stats = super().init(features, **options)
        if callable(self.r_max) or callable(self.d_max):
            batch_stats["steps"] = jnp.zeros((), jnp.int32)
        return params, batch_stats

    def apply(self, x, params, batch_stats, *, train, r_max=None, d_max=None, **options):
        """y and the updated statistics: see `jbn.batch_norm` and `jbn.renorm`."""
        for name, limit in (("r_max", r_max), ("d_max", d_max)):
            if limit is not None:
                _check_limit(name, limit)
                options[name] = jnp.asarray(limit)
            elif callable(getattr(self, name)) and "steps" not in batch_stats:
                raise ValueError(
                    f"`batch_stats` must hold 'steps' where `{name}` is a schedule, as the `init` of "
                    f"this norm makes them, got {sorted(batch_stats)}"
                )
        return super().apply(x, params, batch_stats, train=train, **options)

    def in_training(self, x, params, batch_stats, *, average, axis, **options):
        """Batch norm with scale * r and bias + scale * d."""
        if jnp.iscomplexobj(x):
            raise TypeError(f"`x` must be real for a batch renormalization, got {x.dtype}")
        limits = {name: options.pop(name, getattr(self, name)) for name in _LEAST}
        epsilon = options["epsilon"]

        def corrected(m, params):
            old = running(batch_stats, m)
            dtype = _dtypes.promote(m.var.dtype, old.var.dtype)
            wide = (v.astype(dtype) for v in (old.mean, old.var, m.mean, m.var, m.remainder))
            old_mean, old_var, mean, var, remainder = wide
            least = jnp.asarray(epsilon, dtype)
            r_max, d_max = (
                jnp.asarray(v(batch_stats["steps"]) if callable(v) else v, dtype)
                for v in limits.values()
            )
            sigma = jnp.sqrt(old_var + least)
            r = jnp.clip(jnp.sqrt(var + least) / sigma, 1 / r_max, r_max)
            d = jnp.clip((mean - old_mean + remainder) / sigma, -d_max, d_max)
            r, d = lax.stop_gradient((r, d))
            return m, _composed(params, r, d, axis, x.ndim)

        y, m = normalized_by(corrected, x, params, axis=axis, shift=batch_stats["mean"], **options)
        return y, self._updated(batch_stats, m, epsilon, average)

    def _updated(self, batch_stats, m, epsilon, average):
        if "steps" in batch_stats:
            batch_stats = {**batch_stats, "steps": batch_stats["steps"] + 1}
        if self.running == "variance":
            return average(batch_stats, m)
        if average.running_variance == "unbiased":
            raise ValueError(
                "`running_variance` must be 'biased' where deviations are averaged, got 'unbiased'; "
                "that is for jbn.renorm(running='variance')"
            )
        var = batch_stats["var"]
        dtype = _dtypes.promote(var.dtype)
        sigma = jnp.sqrt(var.astype(dtype) + jnp.asarray(epsilon, dtype)).astype(var.dtype)
        deviation = dataclasses.replace(m, var=jnp.sqrt(m.var + jnp.asarray(epsilon, m.var.dtype)))
        updated = average({**batch_stats, "var": sigma}, deviation)
        new = updated["var"]
        # What was not updated stays as it is, to the last digit.
        square = jnp.square(new.astype(dtype)) - jnp.asarray(epsilon, dtype)
        updated["var"] = jnp.where(new == sigma, var, jnp.maximum(square, 0).astype(var.dtype))
        return updated


def _check_limit(name: str, limit: Any) -> None:
    """Fails where a limit is no number, or too small; a traced one cannot be looked at."""
    if isinstance(limit, Tracer):
        return
    if callable(limit) or np.ndim(limit) or not np.asarray(limit) >= _LEAST[name]:
        raise ValueError(f"`{name}` must be a number, at least {_LEAST[name]}, got {limit!r}")


def _composed(params, r, d, axis, ndim):
    """(z * r + d) * scale + bias as parameters of z."""
    if any(p.ndim == ndim for p in params.values()):
        reduced = _checks.reduction_axes(axis, ndim)
        values = {"r": r, "d": d, **params}
        values = {n: v if v.ndim == ndim else lax.expand_dims(v, reduced) for n, v in values.items()}
        r, d, *_ = values.values()
        params = {name: values[name] for name in params}
    dtype = _dtypes.promote(r.dtype, *(p.dtype for p in params.values()))
    r, d = r.astype(dtype), d.astype(dtype)
    params = {name: p.astype(dtype) for name, p in params.items()}
    scale = params.get("scale", jnp.ones_like(r))
    return {"scale": scale * r, "bias": scale * d + params.get("bias", jnp.zeros_like(d))}
