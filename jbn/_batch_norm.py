"""Batch normalization as a pure function. Read this file first.

    check the arguments -> moments of the batch -> normalize -> update the running statistics

Each step is a public function of its own: `jbn.moments`, `jbn.normalize`, `jbn.update_running`.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from jbn import _checks, _collectives, _dtypes, _warnings
from jbn._derivative import batch_normalized, normalized
from jbn._form import Affine, Form
from jbn._masking import as_weights
from jbn._mode import by_mode
from jbn._running import decay, updated
from jbn._statistics import Moments
from jbn._typing import (
    Array,
    Axis,
    AxisIndexGroups,
    AxisName,
    BatchStats,
    Flag,
    Params,
    RunningVariance,
)
from jbn.ops.reduction import Reduction
from jbn.ops.rounded import widened


def init(
    features: int | Sequence[int],
    *,
    dtype: DTypeLike = jnp.float32,
    momentum: ArrayLike | None = 0.99,
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Parameters and running statistics of one layer, as Flax names and initializes them.

    Args:
        features: number of channels, or the sizes of the feature axes in the order they have in `x`.
        dtype: dtype of `scale` and `bias`. The statistics are float32 at least. Default float32.
        momentum: None adds `count` to the statistics, which the cumulative average needs. Any other
            value changes nothing.

    Returns:
        params: {"scale": ones, "bias": zeros}; leave out either and that part of the map is skipped.
        batch_stats: {"mean": zeros, "var": ones}, and "count": zeros, int32, where momentum is None.

    Raises:
        ValueError, TypeError: an argument is not of the form above.

    Example:
        >>> import jax, jbn
        >>> params, batch_stats = jbn.init(64)
        >>> jax.tree.map(lambda v: v.shape, (params, batch_stats))
        ({'bias': (64,), 'scale': (64,)}, {'mean': (64,), 'var': (64,)})
    """
    shape = _checks.number_of_features(features)
    _checks.momentum_value(momentum)
    dtype = _dtypes.floating("dtype", dtype)
    params = {"scale": jnp.ones(shape, dtype), "bias": jnp.zeros(shape, dtype)}
    mean_dtype = _dtypes.promote(dtype)
    batch_stats = {
        "mean": jnp.zeros(shape, mean_dtype),
        "var": jnp.ones(shape, _dtypes.real(mean_dtype)),
    }
    if momentum is None:
        batch_stats["count"] = jnp.zeros(shape, jnp.int32)
    return params, batch_stats


def batch_norm(
    x: ArrayLike,
    params: Params,
    batch_stats: BatchStats,
    *,
    train: Flag,
    axis: Axis = -1,
    momentum: ArrayLike | None = 0.99,
    epsilon: ArrayLike = 1e-5,
    mask: ArrayLike | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: AxisIndexGroups | None = None,
    running_variance: RunningVariance = "biased",
    dtype: DTypeLike | None = None,
    form: Form = Form(),
) -> tuple[Array, dict[str, Array]]:
    """Batch normalization (Ioffe and Szegedy 2015): pytrees in, pytrees out.

        mean, var = moments of x over all axes but `axis`      (train)
        mean, var = batch_stats                                (not train)
        y = (x - mean) * rsqrt(var + epsilon) * scale + bias
        batch_stats = momentum * batch_stats + (1 - momentum) * (mean, var)      (train)

    With r the result of these lines in float64 for the same float32 `x`, |y - r| is at most
    1e-6 * max(1, |r|) for scale 1, however large the mean is against the deviation; a channel of one
    repeated value gives exactly `bias`. Differentiable any number of times in both modes; no gradient
    flows through the returned statistics. On a TPU y depends on `batch_stats` in training too, in its
    last digits: see `shift` of `jbn.moments`.

    Args:
        x: (..., C) array of rank 1 or more: float16, bfloat16, float32, float64, integer (promoted
            to float32) or complex.
        params: {"scale": (C,), "bias": (C,)}; either may be left out, and is then skipped. Or of as
            many dimensions as `x` and broadcasting against it: a scale and bias of their own for each
            sample or position.
        batch_stats: {"mean": (C,), "var": (C,)}, and "count" for the cumulative average: `jbn.init`.
        train: normalize with the statistics of `x` and update the running ones (True), or with the
            running ones (False). A traced bool makes it a `lax.cond`.
        axis: the FEATURE axis or axes, as in Flax and Keras (Haiku's `axis` are the reduced ones).
            Default -1.
        momentum: weight of the OLD running statistics, in [0, 1], or traced, or None for the
            cumulative average: see `jbn.update_running`. Default 0.99.
        epsilon: > 0, added to the variance. Default 1e-5.
        mask: boolean, or float weights >= 0, broadcasting against `x`: see `jbn.moments`. Masked
            positions are normalized like the rest; in a channel without samples, with mean and variance
            0, so that y is x * scale / sqrt(epsilon) + bias there. Default None.
        axis_name, axis_index_groups: share the statistics across devices: see `jbn.moments`. Not
            looked at in inference.
        running_variance: "biased" or "unbiased": see `jbn.update_running`.
        dtype: dtype of y. Default: that of `x`.
        form: what y is made of besides, and what the backward pass keeps; of variants such as
            `jbn.inplace`. Default: as above, and x is kept.

    Returns:
        y: of the shape of `x`.
        batch_stats: a new dict; the old values where `train` is False, and in the channels that have no
            samples or whose batch statistics are not finite.

    Raises:
        ValueError, TypeError: an argument is not of the form above; raised while tracing.
        NameError: training with an `axis_name` that is not bound.

    Example:
        >>> import jax.numpy as jnp, jbn
        >>> x = jnp.array([[1.], [2.], [3.], [4.], [5.]])  # mean 3, variance 2
        >>> params, batch_stats = jbn.init(1)
        >>> y, batch_stats = jbn.batch_norm(x, params, batch_stats, train=True, momentum=0.0)
        >>> print(y.round(2).ravel(), batch_stats["mean"], batch_stats["var"])
        [-1.41 -0.71  0.    0.71  1.41] [3.] [2.]

    References:
        Ioffe and Szegedy (2015), "Batch Normalization: Accelerating Deep Network Training by Reducing
        Internal Covariate Shift", arXiv:1502.03167.
    """
    x = _checks.input_array(x)
    features = _checks.feature_axes(axis, x.ndim)
    shape = tuple(x.shape[a] for a in features)
    train = _checks.flag("train", train)
    params = _checks.params_dict(params, x, shape)
    momentum = _checks.momentum_value(momentum)
    batch_stats = _checks.batch_stats_dict(batch_stats, shape, momentum is None)
    _checks.real_where_x_is("batch_stats['mean']", batch_stats["mean"], x)
    affine = Affine(params.get("scale"), params.get("bias"), _checks.epsilon_value(epsilon))
    if not isinstance(form, Form):
        raise TypeError(
            f"`form` must be a jbn.Form, got {form!r}; a norm is given to a layer, as `norm`, or is "
            f"called by its own `apply`"
        )
    _checks.choice("running_variance", running_variance, RunningVariance)
    axis_name = _checks.axis_names(axis_name)
    groups = _checks.index_groups(axis_index_groups, axis_name)
    reduction = Reduction(_checks.reduction_axes(features, x.ndim), axis_name, groups)
    if train is not False:
        if axis_name is not None:
            _collectives.require_axis(axis_name, groups)
        elif mask is None:
            _warnings.warn_if_single(reduction.samples(x.shape))
    weights = as_weights(mask, x)
    dtype = _dtypes.output(x, dtype)
    if dtype in (jnp.float64, jnp.complex128):
        x = widened(x, dtype)

    def training(batch_stats):
        static = form, dtype, running_variance
        return _train(static, reduction, x, weights, affine, batch_stats, decay(momentum))

    def inference(batch_stats):
        return _infer((form, dtype), reduction, x, weights, affine, batch_stats), batch_stats

    mapped = {"axis_name": axis_name, "groups": groups}
    return by_mode(train, training, inference, batch_stats, x, weights, **mapped)


@functools.partial(jax.jit, static_argnums=0)
def _train(static, reduction, x, weights, affine, batch_stats, decays):
    form, dtype, running_variance = static
    with jax.named_scope("jbn.batch_norm"):
        shift = jax.lax.stop_gradient(batch_stats["mean"])
        y, m = batch_normalized(form, dtype, reduction, x, weights, shift, affine)
        return y, updated(batch_stats, m, decays, running_variance)


@functools.partial(jax.jit, static_argnums=0)
def _infer(static, reduction, x, weights, affine, batch_stats):
    form, dtype = static
    with jax.named_scope("jbn.batch_norm"):
        m = Moments(batch_stats["mean"], batch_stats["var"])
        exact = _dtypes.promote(dtype)
        z = normalized(Form(), exact, reduction, x, weights, m, affine)
        return form.activation(z).astype(dtype)
