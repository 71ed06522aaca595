"""Inference by the running statistics and the example's own, as Summers and Dinneen weigh them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jbn import _checks
from jbn._mode import by_mode
from jbn._norm import Norm, as_norm, plain
from jbn.variants.by_moments import ByMoments, normalized_by, of_plain, running
from jbn.variants.mixture import mixed
from jbn.variants.per_example import examples_as_features


def weighted_inference(alpha: float, norm: Norm = plain) -> Norm:
    """Inference in which an example's own statistics have a weight, as they had in training.

        mean_i = alpha * E_i[x] + (1 - alpha) * mean
        var_i  = alpha * Var_i[x] + (1 - alpha) * var + alpha * (1 - alpha) * (E_i[x] - mean)^2
        y      = (x - mean_i) * rsqrt(var_i + epsilon) * scale + bias            (inference)

    with E_i and Var_i over the positions of example i: mean and variance of values drawn from the
    example with probability alpha, from what the running statistics stand for otherwise. In training
    on batches of B an example has a weight of 1 / B in its own statistics, in inference none: `alpha`
    makes up for that. Choose it on validation data; nothing is trained again. Training is that of
    `norm`.

    It takes a pass over x that inference has not otherwise. The paper's code averages E[x^2] where
    `batch_stats` have the variance: the same but for the variance between batches.

    Args:
        alpha: in [0, 1]; 0 is inference as it was.
        norm: whose training and statistics: `jbn.plain`, or a variant whose inference is plain.

    Returns:
        A `Norm`. Its `apply` takes `alpha` too, for this call, traced if need be. Positions that are
        masked do not count; an example without any is normalized by the running statistics.

    Raises:
        ValueError, TypeError: an argument is not of the form above.

    Example:
        >>> import jax.numpy as jnp, jbn
        >>> norm = jbn.weighted_inference(alpha=0.5)
        >>> params, batch_stats = norm.init(1)                    # mean 0, variance 1
        >>> x = jnp.array([[[0.], [4.]]])                         # one example: mean 2, variance 4
        >>> y, _ = norm.apply(x, params, batch_stats, train=False)    # mean 1, variance 3.5
        >>> print(f"{y[0, 0, 0]:.2f} {y[0, 1, 0]:.2f}")
        -0.53 1.60

    References:
        Summers and Dinneen (2020), "Four Things Everyone Should Know to Improve Batch Normalization",
        arXiv:1906.03548.
    """
    return WeightedInference(alpha, norm)


@dataclasses.dataclass(frozen=True)
class WeightedInference(Norm):
    """See `weighted_inference`."""

    alpha: float
    norm: Norm

    def __post_init__(self):
        _check_alpha(self.alpha)
        cls = type(as_norm(self.norm))
        if cls is not Norm and getattr(cls, "in_inference", None) is not ByMoments.in_inference:
            raise ValueError(
                f"`norm` of jbn.weighted_inference must be one whose inference is plain, got "
                f"{self.norm!r}; put jbn.weighted_inference into that"
            )

    def init(self, features, **options):
        """Those of the norm."""
        return self.norm.init(features, **options)

    def apply(self, x, params, batch_stats, *, train, alpha=None, **options):
        """y and the updated statistics: see `jbn.batch_norm` and `jbn.weighted_inference`."""
        self.check(options)
        train = _checks.flag("train", train)
        alpha = self.alpha if alpha is None else alpha
        _check_alpha(alpha)
        if train is True or (isinstance(alpha, int | float) and alpha == 0):
            return self.norm.apply(x, params, batch_stats, train=train, **options)

        def training(batch_stats):
            return self.norm.apply(x, params, batch_stats, train=True, **options)

        def inference(batch_stats):
            weighed = {**of_plain(options), "alpha": jnp.asarray(alpha)}
            return _Weighed().apply(x, params, batch_stats, train=True, **weighed)

        names = _checks.axis_names(options.get("axis_name"))
        groups = _checks.index_groups(options.get("axis_index_groups"), names)
        mapped = {"axis_name": names, "groups": groups}
        arrays = [None if v is None else jnp.asarray(v) for v in (x, options.get("mask"))]
        batch_stats = {name: jnp.asarray(v) for name, v in batch_stats.items()}
        return by_mode(train, training, inference, batch_stats, *arrays, **mapped)


def _check_alpha(alpha):
    if not isinstance(alpha, Tracer) and (np.ndim(alpha) or not 0 <= np.asarray(alpha) <= 1):
        raise ValueError(f"`alpha` must lie in [0, 1], got {alpha!r}")


@dataclasses.dataclass(frozen=True)
class _Weighed(ByMoments):
    """The inference, as what becomes of a batch."""

    def apply(self, x, params, batch_stats, *, train, alpha, **options):
        return super().apply(x, params, batch_stats, train=train, alpha=alpha, **options)

    def in_training(self, x, params, batch_stats, *, axis, alpha, **options):
        params, axis, examples = examples_as_features(x, params, axis)
        options = {name: options[name] for name in ("mask", "epsilon", "dtype") if name in options}

        def weighed(m, params):
            stored = dataclasses.replace(running(batch_stats, m), count=None)
            stored = jax.tree.map(lambda s: jnp.expand_dims(s, examples), stored)
            weight = jnp.where(m.count > 0, alpha.astype(m.var.dtype), 0)
            return mixed(stored, m, weight), params

        y, _ = normalized_by(weighed, x, params, axis=axis, single=True, **options)
        return y, batch_stats
