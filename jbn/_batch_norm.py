"""Batch normalization as a pure function. Read this file first.

    check the arguments -> moments of the batch -> normalize -> update the running statistics

Each step is a public function of its own: `jbn.moments`, `jbn.normalize`, `jbn.update_running`.
"""

import functools
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jbn import _checks, _collectives, _dtypes, ops
from jbn._moments import Moments, Reduction, as_weights
from jbn._normalize import normalize, normalize_batch
from jbn._running import decay, updated

Array = jax.Array


def init(
    features: int | Sequence[int], *, dtype: Any = jnp.float32, momentum: float | None = 0.99
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
        ValueError: `features` is negative.

    Example:
        >>> import jax, jbn
        >>> params, batch_stats = jbn.init(64)
        >>> jax.tree.map(lambda v: v.shape, (params, batch_stats))
        ({'bias': (64,), 'scale': (64,)}, {'mean': (64,), 'var': (64,)})
    """
    shape = tuple(features) if isinstance(features, Iterable) else (operator.index(features),)
    if any(n < 0 for n in shape):
        raise ValueError(f"`features` must not be negative, got {features!r}")
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
    x: Any,
    params: Mapping[str, Any],
    batch_stats: Mapping[str, Any],
    *,
    train: Any,
    axis: _checks.Axis = -1,
    momentum: Any = 0.99,
    epsilon: Any = 1e-5,
    mask: Any = None,
    axis_name: _checks.AxisName | None = None,
    axis_index_groups: _checks.AxisIndexGroups | None = None,
    running_variance: _checks.RunningVariance = "biased",
    dtype: Any = None,
    implementation: ops.Implementation | None = None,
) -> tuple[Array, dict[str, Array]]:
    """Batch normalization (Ioffe and Szegedy 2015): pytrees in, pytrees out.

        mean, var = moments of x over all axes but `axis`      (train)
        mean, var = batch_stats                                (not train)
        y = (x - mean) * rsqrt(var + epsilon) * scale + bias
        batch_stats = momentum * batch_stats + (1 - momentum) * (mean, var)      (train)

    With r the result of these lines in float64 for the same float32 `x`, |y - r| is at most
    1e-6 * max(1, |r|) for scale 1, however large the mean is against the deviation; a channel of one
    repeated value gives exactly `bias`. Differentiable any number of times in both modes; no gradient
    flows through the returned statistics.

    Args:
        x: (..., C) array of rank 1 or more: float16, bfloat16, float32, float64, integer (promoted
            to float32) or complex.
        params: {"scale": (C,), "bias": (C,)}; either may be left out, and is then skipped.
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
        implementation: None (the default implementation) or "xla".

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
    return call(
        _PLAIN,
        x,
        params,
        batch_stats,
        train=train,
        axis=axis,
        momentum=momentum,
        epsilon=epsilon,
        mask=mask,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        running_variance=running_variance,
        dtype=dtype,
        implementation=implementation,
    )


class Operation:
    """What batch norm does between the input and the output; a variant derives from it.

    Hashable, and equal where it computes the same, so that one compiled program serves all calls.
    """

    def train(
        self,
        reduction: Reduction,
        dtype: Any,
        x: Array,
        weights: Array | None,
        scale: Array | None,
        bias: Array | None,
        epsilon: Any,
    ) -> tuple[Array, Moments]:
        """y in `dtype`, and the moments of the batch."""
        y, m = normalize_batch(reduction, x, weights, scale, bias, epsilon)
        return y.astype(dtype), m

    def activation(self, z: Array) -> Array:
        """y of the normalized z, in inference."""
        return z


_PLAIN = Operation()


def call(
    operation: Operation,
    x: Any,
    params: Mapping[str, Any],
    batch_stats: Mapping[str, Any],
    *,
    train: Any,
    axis: _checks.Axis = -1,
    momentum: Any = 0.99,
    epsilon: Any = 1e-5,
    mask: Any = None,
    axis_name: _checks.AxisName | None = None,
    axis_index_groups: _checks.AxisIndexGroups | None = None,
    running_variance: _checks.RunningVariance = "biased",
    dtype: Any = None,
    implementation: ops.Implementation | None = None,
) -> tuple[Array, dict[str, Array]]:
    """`batch_norm`, which documents the arguments, with another operation in the middle."""
    x = _checks.input_array(x)
    features = _checks.feature_axes(axis, x.ndim)
    shape = tuple(x.shape[a] for a in features)
    train = _checks.train_flag(train)
    params = _checks.params_dict(params, shape)
    batch_stats = _checks.batch_stats_dict(batch_stats, shape, momentum is None)
    _checks.momentum_value(momentum)
    epsilon = _checks.epsilon_value(epsilon)
    _checks.choice("running_variance", running_variance, _checks.RunningVariance)
    ops.select(implementation)
    axis_name = _checks.axis_names(axis_name)
    groups = _checks.index_groups(axis_index_groups, axis_name)
    axes = _checks.reduction_axes(features, x.ndim)
    if train is not False:
        if axis_name is not None:
            _collectives.require_axis(axis_name, groups)
        elif mask is None:
            _checks.warn_if_single(math.prod(x.shape[a] for a in axes))
    if mask is not None:
        mask = _checks.mask_array(mask, x.shape)
    out = _dtypes.output(x, dtype)
    if out in (jnp.float64, jnp.complex128):
        x = x.astype(out)

    def training(batch_stats):
        reduction = Reduction(axes, axis_name, groups, implementation)
        static = operation, reduction, running_variance, out
        return _train(static, x, params, batch_stats, mask, decay(momentum), epsilon)

    def inference(batch_stats):
        m = Moments(batch_stats["mean"], batch_stats["var"])
        exact = _dtypes.promote(out)
        z = normalize(x, m, params, axis=features, epsilon=epsilon, mask=mask, dtype=exact)
        return operation.activation(z).astype(out), batch_stats

    with jax.named_scope("jbn.batch_norm"):
        if isinstance(train, bool):
            return training(batch_stats) if train else inference(batch_stats)
        if jnp.iscomplexobj(x):
            batch_stats["mean"] = batch_stats["mean"].astype(x.dtype)
        # Both branches must vary over the same devices, which in training x and the mask decide.
        for v in (x, mask) if mask is not None else (x,):
            nothing = jnp.sum(jnp.zeros_like(v)).real
            batch_stats = {name: s + nothing.astype(s.dtype) for name, s in batch_stats.items()}
        return jax.lax.cond(train, training, inference, batch_stats)


@functools.partial(jax.jit, static_argnums=0)
def _train(static, x, params, batch_stats, mask, decays, epsilon):
    operation, reduction, running_variance, dtype = static
    scale, bias = params.get("scale"), params.get("bias")
    y, m = operation.train(reduction, dtype, x, as_weights(mask, x), scale, bias, epsilon)
    return y, updated(batch_stats, m, decays, running_variance)


class Norm(NamedTuple):
    """A norm as a pair of pure functions, after optax: what the Flax layers take as `norm`.

    Attributes:
        init: `init(features, *, dtype, momentum) -> (params, batch_stats)`, as `jbn.init`.
        apply: `apply(x, params, batch_stats, *, train, ...) -> (y, batch_stats)`, with the keywords
            of `jbn.batch_norm`.
    """

    init: Callable[..., tuple[dict[str, Array], dict[str, Array]]]
    apply: Callable[..., tuple[Array, dict[str, Array]]]


plain = Norm(init, batch_norm)
