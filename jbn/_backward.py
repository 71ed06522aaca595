"""The analytic backward pass as a plain function: what `jax.grad` of `jbn.batch_norm` computes."""

import jax.numpy as jnp
from jax.typing import ArrayLike

from jbn import _checks, _collectives, _dtypes
from jbn._form import inverse_deviation
from jbn._masking import as_weights, counted, harmless, weighted
from jbn._statistics import Moments
from jbn._typing import Array, Axis, AxisIndexGroups, AxisName, Params
from jbn.ops.local_moments import divide
from jbn.ops.reduction import Reduction
from jbn.ops.rounded import rounded, rounded_for_sum


def batch_norm_backward(
    dy: ArrayLike,
    x: ArrayLike,
    params: Params,
    moments: Moments,
    *,
    axis: Axis = -1,
    epsilon: ArrayLike = 1e-5,
    mask: ArrayLike | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: AxisIndexGroups | None = None,
) -> tuple[Array, dict[str, Array]]:
    """Cotangents of `x` and `params` in training, from the cotangent of the output.

        d      = x - mean;  n = count;  rstd = rsqrt(var + epsilon)
        dbias  = sum(dy)
        dscale = rstd * sum(dy * d)
        dx     = scale * rstd * (dy - w * sum(dy) / n)
                 - w * conj(d) * rstd^3 * Re(scale * sum(dy * d)) / n

    with w the mask (all ones by default). `jbn.batch_norm` does not call this function: its
    derivative rule transposes into these lines, and the tests hold the two against each other. It is
    for reading, and for writing a backward pass by hand.

    Args:
        dy: cotangent of y, of the shape of `x`.
        x: the input of the forward pass.
        params: as in the forward pass, one value per channel; cotangents are returned for what it
            holds.
        moments: `jbn.moments` of `x` with the same `axis`, `mask` and `axis_name`.
        axis, epsilon, mask, axis_name, axis_index_groups: as in `jbn.batch_norm`. With `axis_name`
            the sums in `dx` are over all devices, those of `params` over this device's samples.

    Returns:
        dx: of the shape and dtype of `x`.
        dparams: dict with the keys, shapes and dtypes of `params`.

    Raises:
        ValueError, TypeError: an argument is not of the form above.

    Example:
        >>> import jax, jax.numpy as jnp, jbn
        >>> x, dy = jnp.array([[1.], [2.], [4.]]), jnp.array([[1.], [0.], [0.]])
        >>> params, batch_stats = jbn.init(1)
        >>> dx, dparams = jbn.batch_norm_backward(dy, x, params, jbn.moments(x))
        >>> _, vjp = jax.vjp(lambda x: jbn.batch_norm(x, params, batch_stats, train=True)[0], x)
        >>> bool(jnp.allclose(dx, vjp(dy)[0], atol=1e-6))
        True
    """
    x = _checks.input_array(x)
    features = _checks.feature_axes(axis, x.ndim)
    shape = tuple(x.shape[a] for a in features)
    params = _checks.params_dict(params, x, shape)
    params = {name: _checks.per_channel(f"params['{name}']", v, shape) for name, v in params.items()}
    epsilon = _checks.epsilon_value(epsilon)
    m = _checks.moments_arrays(moments, shape, ("mean", "var", "count"))
    if jnp.shape(dy) != x.shape:
        raise ValueError(f"`dy` must have the shape of `x`, {x.shape}, got {jnp.shape(dy)}")
    axis_name = _checks.axis_names(axis_name)
    groups = _checks.index_groups(axis_index_groups, axis_name)
    reduction = Reduction(_checks.reduction_axes(features, x.ndim), axis_name, groups)
    weights = as_weights(mask, x)

    def deviation(x):
        d = x - reduction.expand(m.mean.astype(x.dtype))
        return harmless(weights, d if m.remainder is None else d - reduction.expand(m.remainder))

    dtype = _dtypes.promote(x.dtype)
    dy = jnp.asarray(dy).astype(dtype)
    sum_dy = reduction.sum(dy)
    sum_dy_d = reduction.sum(dy * deviation(rounded_for_sum(x, dtype)))
    rstd = inverse_deviation(m.var, epsilon)
    a = rstd.astype(dtype)
    dparams = {"scale": a * sum_dy_d, "bias": sum_dy}
    dparams = {
        name: (dparams[name] if jnp.iscomplexobj(p) else dparams[name].real).astype(p.dtype)
        for name, p in params.items()
    }

    if "scale" in params:
        a = params["scale"].astype(dtype) * a
    # The variance is real, whatever the scale.
    along_d = (a * sum_dy_d).real
    if axis_name is not None:
        _collectives.require_axis(axis_name, groups)
        sum_dy, along_d = _collectives.psum((sum_dy, along_d), axis_name, groups)
    slope = reduction.expand(rstd * (rstd * divide(along_d, m.count)))
    a, mean_dy = (reduction.expand(v).astype(dtype) for v in (a, divide(sum_dy, m.count)))
    d = counted(weights, deviation(rounded(x, dtype)))
    dx = a * (dy - weighted(weights, mean_dy)) - weighted(weights, jnp.conj(d) * slope.astype(d.dtype))
    return dx.astype(x.dtype), dparams
