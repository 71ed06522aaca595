"""Frozen batch norm: the running statistics always, and perhaps no training of scale and bias."""

import dataclasses

from jax import lax

from jbn import _checks
from jbn._norm import Norm, as_norm, plain


def frozen(norm: Norm = plain, *, trainable_params: bool = False) -> Norm:
    """Batch norm that has learned: it normalizes by the running statistics, in training too.

        y = (x - mean) * rsqrt(var + epsilon) * scale + bias,   mean and var of `batch_stats`

    For fine-tuning with batches too small or too different for statistics of their own (detection), and
    for the end of a training. It is an affine map: no sums in the forward pass, none of x in the
    backward pass. The parameters and statistics are those of `norm`, so that it can be put in its place
    at any time, with the same variables:

        y, _ = jbn.frozen(norm).apply(x, params, batch_stats, train=True)      functionally
        model = model.clone(norm=jbn.frozen())                                 Linen, a field of yours
        model.set_attributes(jbn.nnx.BatchNorm, norm=jbn.frozen())             NNX, all layers

    torchvision's and detectron2's FrozenBatchNorm2d have constants for scale and bias, as here by
    default. torchvision's epsilon is 1e-5, as here, and was 0 once; detectron2's is 1e-5.

    Args:
        norm: the norm to freeze.
        trainable_params: whether gradients flow to scale and bias.

    Returns:
        A `Norm`; `train` makes no difference to it.

    Example:
        >>> import jax.numpy as jnp, jbn
        >>> norm = jbn.frozen()
        >>> params, batch_stats = norm.init(1)
        >>> x = jnp.array([[1.], [3.]])
        >>> y, _ = norm.apply(x, params, {"mean": jnp.ones(1), "var": jnp.full(1, 4.)}, train=True)
        >>> print(y.round(2).ravel())
        [0. 1.]

    References:
        He et al. (2016), "Deep Residual Learning for Image Recognition", arXiv:1512.03385.
    """
    return Frozen(norm, trainable_params)


@dataclasses.dataclass(frozen=True)
class Frozen(Norm):
    """See `frozen`."""

    norm: Norm
    trainable_params: bool

    def __post_init__(self):
        as_norm(self.norm)

    def init(self, features, **options):
        """Those of the norm."""
        return self.norm.init(features, **options)

    def apply(self, x, params, batch_stats, *, train, **options):
        """y and the statistics as they are: see `jbn.batch_norm`."""
        self.check(options)
        _checks.flag("train", train)
        if not self.trainable_params:
            params = {name: lax.stop_gradient(p) for name, p in params.items()}
        return self.norm.apply(x, params, batch_stats, train=False, **options)
