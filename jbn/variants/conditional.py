"""Conditional batch norm: scale and bias are given at the call, for each example or position."""

import dataclasses

import numpy as np
from jax import lax

from jbn import _checks
from jbn._norm import Norm, plain
from jbn.variants.composition import chain, check_inner, check_one_set
from jbn.variants.frozen import Frozen
from jbn.variants.grouping import example_axes


def conditional(norm: Norm = plain) -> Norm:
    """Batch norm whose scale and bias come with the call: from a class, a question, a style, a network.

        y = (x - mean) * rsqrt(var + epsilon) * scale_i + bias_i         (for example i)

    For conditional GANs (BigGAN: `scale=1 + Dense(embedding)`), FiLM, style transfer, segmentation maps
    that modulate (SPADE: one for each position). It has no parameters of its own, and gradients for
    what is given. It costs what batch norm costs: the sums of each example are on the way to those of
    the batch. Haiku's BatchNorm takes what broadcasts against x; here (N, C) will do for (N, ..., C).

    Args:
        norm: the norm whose scale and bias are given, `jbn.plain` or a variant.

    Returns:
        A `Norm`. Its `apply`, and a Flax layer with it, takes `scale` and `bias`, at least one of them:

            (N, C)               for each example; N is the first axis that is reduced
            of the rank of x     for each position, or whatever broadcasts against x
            (C,)                 for the whole batch

    Raises:
        ValueError: the norm is conditional itself, or has parameters of several sets.
        TypeError: from `apply`, where neither is given.

    Example:
        >>> import jax, jax.numpy as jnp, jbn
        >>> norm = jbn.conditional()
        >>> params, batch_stats = norm.init(3)
        >>> x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
        >>> scale = 1 + jnp.array([[0.1, 0.2, 0.3], [0., 0., 0.]])    # of two examples
        >>> y, batch_stats = norm.apply(x, params, batch_stats, train=True, scale=scale)
        >>> print(params, y.shape)
        {} (2, 8, 8, 3)

    References:
        de Vries et al. (2017), "Modulating early visual processing by language", arXiv:1707.00683;
        Perez et al. (2018), "FiLM", arXiv:1709.07871; Brock et al. (2019), "Large Scale GAN Training
        for High Fidelity Natural Image Synthesis", arXiv:1809.11096.
    """
    return Conditional(norm)


@dataclasses.dataclass(frozen=True)
class Conditional(Norm):
    """See `conditional`."""

    norm: Norm

    def __post_init__(self):
        check_inner("conditional", self.norm, "scale", "bias")
        check_one_set("conditional", self.norm)
        if any(isinstance(norm, Frozen) and not norm.trainable_params for norm in chain(self.norm)):
            raise ValueError(
                f"`norm` of jbn.conditional must not be frozen, or no gradient would flow to what is "
                f"given at the call, got {self.norm!r}; freeze the conditional one"
            )

    def init(self, features, **options):
        """Those of the norm, without scale and bias."""
        params, batch_stats = self.norm.init(features, **options)
        return {n: v for n, v in params.items() if n not in ("scale", "bias")}, batch_stats

    def apply(self, x, params, batch_stats, *, train, axis=-1, scale=None, bias=None, **options):
        """y and the updated statistics: see `jbn.batch_norm` and `jbn.conditional`."""
        self.check(options)
        x = _checks.input_array(x)
        if scale is None and bias is None:
            raise TypeError("`scale` or `bias` must be given in the call of a conditional batch norm")
        features = _checks.feature_axes(axis, x.ndim)
        given = {
            name: _of_rank(_checks.array(name, v), x.ndim, features)
            for name, v in (("scale", scale), ("bias", bias))
            if v is not None
        }
        options.update(train=train, axis=features)
        return self.norm.apply(x, {**params, **given}, batch_stats, **options)


def _of_rank(v, ndim, features):
    """What has one value for each example and channel, with axes of size one for the positions."""
    if v.ndim != 1 + len(features):
        return v
    examples, *positions = example_axes(features, ndim)
    return lax.expand_dims(v.transpose(np.argsort([examples, *features])), positions)
