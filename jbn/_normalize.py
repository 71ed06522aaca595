"""y = (x - mean) * rsqrt(var + epsilon) * scale + bias, with given statistics."""

import functools

import jax
from jax.typing import ArrayLike, DTypeLike

from jbn import _checks, _dtypes
from jbn._derivative import normalized
from jbn._form import Affine, Form
from jbn._masking import as_weights
from jbn._statistics import Moments
from jbn._typing import Array, Axis, Params
from jbn.ops.reduction import Reduction


def normalize(
    x: ArrayLike,
    moments: Moments,
    params: Params | None = None,
    *,
    axis: Axis = -1,
    epsilon: ArrayLike = 1e-5,
    mask: ArrayLike | None = None,
    dtype: DTypeLike | None = None,
) -> Array:
    """Normalizes with given statistics, then scales and shifts.

        y = (x - mean) * rsqrt(var + epsilon) * scale + bias

    computed as `(x - mean) * a + (bias - remainder * a)` with `a = scale * rsqrt(var + epsilon)`.

    Args:
        x: (..., C) array, real, integer or complex.
        moments: `Moments` with `mean` and `var` of the shape of the feature axes; from `jbn.moments`
            or made of running statistics: `Moments(batch_stats["mean"], batch_stats["var"])`.
        params: mapping with "scale" and "bias", each (C,) and each optional. Default none of them.
        axis: the feature axis or axes. Default -1.
        epsilon: > 0, added to the variance. Default 1e-5 (Flax, Haiku, PyTorch; Keras has 1e-3).
        mask: as in `jbn.moments`. The output does not depend on it; the gradient of the parameters
            leaves out masked values whose square is not finite. Default None.
        dtype: dtype of the output. Default: that of `x` (float32 for integers).

    Returns:
        y of the shape of `x`. The arithmetic is in float32 at least.

    Raises:
        ValueError, TypeError: an argument is not of the form above.

    Example:
        >>> import jax.numpy as jnp, jbn
        >>> m = jbn.Moments(mean=jnp.array([3.]), var=jnp.array([2.]))
        >>> print(jbn.normalize(jnp.array([[1.], [5.]]), m).round(2).ravel())
        [-1.41  1.41]
    """
    x = _checks.input_array(x)
    features = _checks.feature_axes(axis, x.ndim)
    shape = tuple(x.shape[a] for a in features)
    m = _checks.moments_arrays(moments, shape, ("mean", "var"))
    params = _checks.params_dict({} if params is None else params, x, shape)
    affine = Affine(params.get("scale"), params.get("bias"), _checks.epsilon_value(epsilon))
    reduction = Reduction(_checks.reduction_axes(features, x.ndim))
    m = Moments(m.mean, m.var, None, m.remainder)
    return _jitted(_dtypes.output(x, dtype), reduction, x, as_weights(mask, x), m, affine)


@functools.partial(jax.jit, static_argnums=0)
def _jitted(dtype, reduction, x, weights, m, affine):
    with jax.named_scope("jbn.normalize"):
        return normalized(Form(), dtype, reduction, x, weights, m, affine)
