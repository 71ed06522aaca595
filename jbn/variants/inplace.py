"""Batch norm and an invertible activation as one operation that keeps its output, not its input."""

import dataclasses
import math
from typing import Literal

import jax.numpy as jnp

from jbn import _batch_norm, _checks
from jbn._norm import Norm
from jbn.variants.invertible import FORMS

Activation = Literal["leaky_relu", "elu", "identity"]


def inplace(
    activation: Activation = "leaky_relu", *, negative_slope: float = 0.01, alpha: float = 1.0
) -> Norm:
    """In-place activated batch norm: one tensor is kept for the backward pass, the output.

        z = (x - mean) * rsqrt(var + epsilon) * scale + bias
        y = activation(z)

    Batch norm keeps x, the activation z, the next layer y. Here the backward pass reads y, which the
    next layer keeps anyway, and inverts: z from y, x - mean from z. The values, the parameters and the
    statistics are those of batch norm followed by the activation, so that checkpoints are
    interchangeable; every derivative works.

    The scale may be of any sign and size. Where it is so small against the bias that rounding leaves
    nothing of x in y, y could not be inverted: in training |scale| counts as at least 8 roundings of
    |bias| in the dtype of y, which moves y by so many roundings for each deviation that x is from its
    mean, and as at least 1e-30, so that a scale and a bias of zero learn. At the kink of leaky_relu, z
    then has the sign that x gives it.

    What the gradients read from y is (x - mean) / deviation, to one rounding of max(|z|, |bias|)
    divided by |scale|. elu loses more the nearer y is to -alpha, from where nothing leads back: z
    counts as log(eps) there, eps being that of float32.

    Args:
        activation: "leaky_relu", "elu" or "identity".
        negative_slope: of leaky_relu, in (0, 1]. Default 0.01.
        alpha: of elu, > 0. Default 1.

    Returns:
        A `Norm`, for `norm=` of the Flax layers or for its `init` and `apply`, which take what
        `jbn.init` and `jbn.batch_norm` take; real `x` only.

    Raises:
        ValueError: an argument is not of the form above.
        TypeError: from `apply`, where `x` is complex.

    Example:
        >>> import jax.numpy as jnp, jbn
        >>> x = jnp.array([[1.], [2.], [3.], [4.], [5.]])
        >>> norm = jbn.inplace("leaky_relu", negative_slope=0.1)
        >>> params, batch_stats = norm.init(1)
        >>> y, batch_stats = norm.apply(x, params, batch_stats, train=True)
        >>> print(y.round(2).ravel())
        [-0.14 -0.07  0.    0.71  1.41]

    References:
        Rota Bulò, Porzi and Kontschieder (2018), "In-Place Activated BatchNorm for Memory-Optimized
        Training of DNNs", arXiv:1712.02616.
    """
    return InPlace(activation, negative_slope, alpha)


@dataclasses.dataclass(frozen=True)
class InPlace(Norm):
    """See `inplace`."""

    activation: Activation
    negative_slope: float
    alpha: float

    def __post_init__(self):
        _checks.choice("activation", self.activation, Activation)
        least = float(jnp.finfo(jnp.float32).tiny)
        if not least <= self.negative_slope <= 1:
            raise ValueError(
                f"`negative_slope` must lie in (0, 1] to be inverted, and be no less than {least:.1g}, "
                f"got {self.negative_slope!r}"
            )
        if not least <= self.alpha < math.inf:
            raise ValueError(
                f"`alpha` must be a finite number, no less than {least:.1g}, got {self.alpha!r}"
            )

    def apply(self, x, params, batch_stats, *, train, **options):
        """y and the updated statistics: see `jbn.batch_norm`."""
        self.check(options)
        if jnp.iscomplexobj(x):
            raise TypeError(f"`x` must be real for an in-place batch norm, got {jnp.asarray(x).dtype}")
        parameter = self.alpha if self.activation == "elu" else self.negative_slope
        form = FORMS[self.activation](float(parameter))
        return _batch_norm.batch_norm(x, params, batch_stats, train=train, form=form, **options)
