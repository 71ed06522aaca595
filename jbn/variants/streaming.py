"""Streaming batch norm: the running statistics normalize in training too."""

import dataclasses

import jax.numpy as jnp

from jbn import _dtypes
from jbn._masking import squared
from jbn._norm import Norm
from jbn.variants.by_moments import ByMoments, normalized_by, running
from jbn.variants.mixture import mixed


def streaming() -> Norm:
    """Batch norm by the running statistics, the batch being the latest part of them.

        mean <- a * mean + (1 - a) * mean_B                                      (a: momentum)
        var  <- a * var + (1 - a) * var_B + a * (1 - a) * |mean_B - mean|^2      (the mean before)
        y    = (x - mean) * rsqrt(var + epsilon) * scale + bias                  (training, inference)

    For batches of one value per channel, and for learning online: training and inference see the same.
    The last term of the variance is that between the batches, without which one value a batch has
    variance 0: in Equinox's "ema" mode, otherwise the same, it decays to nothing. With momentum None,
    the plain average, these are the statistics of all samples so far, if batches are of one size; else
    they begin at mean 0 and variance 1, and forget that in some 1 / (1 - a) batches.

    The gradient is that of these equations: through the share 1 - a that the batch has. With momentum
    0 it is batch norm. Near 1, the statistics are nearly constants to a step, nothing takes the mean
    and the scale out of the gradient, and training may diverge where batch norm would not: take a small
    learning rate, or `jbn.renorm`, whose gradient is that of batch norm, wherever a batch has several
    values. Online Normalization and MABN mend it by what their backward pass stores, which functions
    cannot; they are left out. It costs what batch norm costs.

    Returns:
        A `Norm`. A channel of which nothing is in the batch is normalized as in inference.

    Raises:
        ValueError: from `apply`, `running_variance="unbiased"`, which a batch of one has not.

    Example:
        >>> import jax.numpy as jnp, jbn
        >>> norm = jbn.streaming()
        >>> params, batch_stats = norm.init(1, momentum=None)
        >>> for value in (1., 2., 3., 4., 5.):
        ...     x = jnp.array([[value]])
        ...     y, batch_stats = norm.apply(x, params, batch_stats, train=True, momentum=None)
        >>> print(y.round(2).ravel(), batch_stats["mean"].round(2), batch_stats["var"].round(2))
        [1.41] [3.] [2.]

    References:
        Welford (1962), "Note on a Method for Calculating Corrected Sums of Squares and Products"; for
        what is left out, Chiley et al. (2019), "Online Normalization for Training Neural Networks",
        arXiv:1905.05894, and Yan et al. (2020), "Towards Stabilizing Batch Statistics in Backward
        Propagation of Batch Normalization", arXiv:2001.06838.
    """
    return Streaming()


@dataclasses.dataclass(frozen=True)
class Streaming(ByMoments):
    """See `streaming`."""

    def in_training(self, x, params, batch_stats, *, average, axis, **options):
        """By the mixture of the running statistics and those of the batch."""
        if average.running_variance != "biased":
            raise ValueError(
                "`running_variance` of jbn.streaming must be 'biased', got "
                f"{average.running_variance!r}: the variance between batches is part of it"
            )
        if average.weights is None:
            count = batch_stats["count"] + 1
            kept = 1 - 1 / count.astype(_dtypes.real(_dtypes.promote(batch_stats["mean"].dtype)))
        else:
            kept, _ = average.weights

        def with_batch(m, params):
            weight = jnp.where(m.count > 0, jnp.asarray(kept, m.var.dtype), 1)
            return mixed(m, running(batch_stats, m), weight), params

        options.update(axis=axis, shift=batch_stats["mean"], single=True)
        y, m = normalized_by(with_batch, x, params, **options)
        mean, var = jnp.asarray(m.mean), jnp.asarray(m.var)
        between = squared(mean - batch_stats["mean"].astype(mean.dtype))
        var = var + jnp.asarray(kept, var.dtype) * between
        return y, average(batch_stats, dataclasses.replace(m, var=var))
