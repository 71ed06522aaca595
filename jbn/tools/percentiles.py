"""The distribution of each unit's values in three numbers, to be recorded through training."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax.typing import ArrayLike

from jbn import _checks, _dtypes
from jbn._typing import Array, Axis


def activation_percentiles(
    x: ArrayLike, percentiles: Sequence[float] = (15, 50, 85), *, axis: Axis = -1
) -> Array:
    """Percentiles of each unit's values, such as the inputs of a nonlinearity.

    Recorded through training they show how the distribution that a unit sees moves and widens: figure 1
    (b, c) of Ioffe and Szegedy. Pure, so that a jitted step or a `lax.scan` may return them, stacked by
    the latter; and where x is inside of a layer:

        self.sow("intermediates", "inputs", jbn.tools.activation_percentiles(x))      Linen
        self.sow(nnx.Intermediate, "inputs", jbn.tools.activation_percentiles(x))     NNX: `nnx.capture`

    or, without a change of the model, of what Linen's `capture_intermediates` returns of the layers in
    front of the nonlinearities.

    Args:
        x: (..., C) array, real.
        percentiles: P numbers in [0, 100]. Default: the mean and one deviation to both sides, if x is
            normally distributed.
        axis: the feature axis or axes, as in `jbn.batch_norm`. Default -1.

    Returns:
        (P, C) array, float32 at least, linearly interpolated; NaN for a unit with a NaN.

    Raises:
        ValueError: a percentile is outside of [0, 100], `axis` does not fit x, or x has no values.
        TypeError: x is complex, or no array.

    Example:
        >>> import jax.numpy as jnp, jbn
        >>> x = jnp.arange(101.0)[:, None] * jnp.array([[1.0, 2.0]])
        >>> print(jbn.tools.activation_percentiles(x).round())
        [[ 15.  30.]
         [ 50. 100.]
         [ 85. 170.]]

    References:
        Ioffe and Szegedy (2015), arXiv:1502.03167, figure 1.
    """
    x = _checks.input_array(x)
    if jnp.iscomplexobj(x):
        raise TypeError(f"`x` must be real to have percentiles, got {x.dtype}")
    if not all(0 <= p <= 100 for p in percentiles):
        raise ValueError(f"`percentiles` must be in [0, 100], got {tuple(percentiles)}")
    if not x.size:
        raise ValueError(f"`x` must have values, got an array of shape {x.shape}")
    x = x.astype(_dtypes.promote(x.dtype))
    reduced = _checks.reduction_axes(_checks.feature_axes(axis, x.ndim), x.ndim)
    return jnp.percentile(x, jnp.asarray(percentiles, x.dtype), axis=reduced)
