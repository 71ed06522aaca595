"""`flax.linen.BatchNorm` by a change of import: the same fields, variables and checkpoints."""

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen import dtypes
from flax.typing import Axes, Dtype, Initializer
from jax.typing import ArrayLike

from jbn import _checks, _dtypes, _warnings
from jbn._norm import BY_LAYER, Norm, as_norm, plain
from jbn._typing import AxisIndexGroups, AxisName, Flag, RunningVariance


class BatchNorm(nn.Module):
    """Batch normalization layer; what it computes is documented at `jbn.batch_norm`.

    The variables are Flax's: `params/{scale,bias}` and `batch_stats/{mean,var}`. While initializing,
    the statistics are not updated and `axis_name` need not exist.

    Attributes:
        use_running_average: normalize with the running statistics; give it here or in the call.
        axis, momentum, epsilon, axis_name, axis_index_groups: see `jbn.batch_norm`; `momentum=None`
            is the cumulative average and adds `batch_stats/count`.
        dtype: dtype of the output. Default: promoted from the input and the parameters.
        param_dtype: dtype of the parameters.
        use_bias, use_scale: whether there is a bias, a scale.
        bias_init, scale_init: their initializers.
        use_fast_variance, force_float32_reductions: accepted and without effect: the statistics are
            exact, and in float32 at least, either way.
        running_variance: see `jbn.update_running`.
        norm: the norm to apply, a `jbn.Norm`. Default: `jbn.plain`.
        mean_init, var_init: initializers of the running statistics, called without a random key.

    Example:
        >>> import jax, jax.numpy as jnp, jbn
        >>> layer = jbn.linen.BatchNorm(use_running_average=False)
        >>> x = jnp.array([[1.], [2.], [3.], [4.], [5.]])
        >>> variables = layer.init(jax.random.key(0), x)
        >>> y, updated = layer.apply(variables, x, mutable=["batch_stats"])
        >>> print(y.round(2).ravel(), updated["batch_stats"]["mean"])
        [-1.41 -0.71  0.    0.71  1.41] [0.03]
    """

    use_running_average: bool | None = None
    axis: Axes = -1
    momentum: ArrayLike | None = 0.99
    epsilon: float = 1e-5
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = nn.initializers.zeros
    scale_init: Initializer = nn.initializers.ones
    axis_name: AxisName | None = None
    axis_index_groups: AxisIndexGroups | None = None
    use_fast_variance: bool = True
    force_float32_reductions: bool = True
    running_variance: RunningVariance = "biased"
    norm: Norm = plain
    mean_init: Callable[..., Any] = nn.initializers.zeros
    var_init: Callable[..., Any] = nn.initializers.ones

    @nn.compact
    def __call__(
        self,
        x: ArrayLike,
        use_running_average: Flag | None = None,
        *,
        mask: ArrayLike | None = None,
        **options: Any,
    ) -> jax.Array:
        """Normalizes `x`.

        Args:
            x: see `jbn.batch_norm`.
            use_running_average: as the field, or traced; give one of the two.
            mask: see `jbn.batch_norm`.
            options: what the norm takes besides.

        Returns:
            y of the shape of `x`; the running statistics are updated in place in training.
        """
        norm = as_norm(self.norm)
        norm.check(options, BY_LAYER)
        given = nn.merge_param("use_running_average", self.use_running_average, use_running_average)
        if isinstance(given, int) and not isinstance(given, bool):
            raise TypeError(
                f"`use_running_average` must be a bool, got {given}; the number of features is that of "
                f"`x`, and not given to a layer of Linen"
            )
        inference = _checks.flag("use_running_average", given)
        x = jnp.asarray(x)
        shape = tuple(x.shape[a] for a in _checks.feature_axes(self.axis, x.ndim))
        params, batch_stats = norm.init(shape, dtype=self.param_dtype, momentum=self.momentum)

        stats_dtype = _dtypes.promote(x.dtype)
        stats_inits = {
            "mean": lambda s: self.mean_init(None, s, stats_dtype),
            "var": lambda s: self.var_init(None, s, _dtypes.real(stats_dtype)),
        }
        there = [name for name in batch_stats if self.has_variable("batch_stats", name)]
        if there and len(there) < len(batch_stats) and not self.is_initializing():
            raise ValueError(
                f"`batch_stats` of {'/'.join(self.path) or 'the layer'} must hold {list(batch_stats)} "
                f"for norm={norm!r} and momentum={self.momentum!r}, got {there}; make them with `init`"
            )
        variables = {}
        for name, value in batch_stats.items():
            init = stats_inits.get(name, lambda s, value=value: value)
            variables[name] = self.variable("batch_stats", name, init, value.shape)

        used = {"scale": self.use_scale, "bias": self.use_bias}
        inits = {"scale": self.scale_init, "bias": self.bias_init}
        params = {
            name: self.param(
                name,
                inits.get(name, lambda key, s, dtype, value=value: value),
                value.shape,
                self.param_dtype,
            )
            for name, value in params.items()
            if used.get(name, True)
        }
        initializing = self.is_initializing()
        with _warnings.initializing() if initializing else contextlib.nullcontext():
            y, updated = norm.apply(
                x,
                params,
                {name: variable.value for name, variable in variables.items()},
                train=_checks.negated(inference),
                axis=self.axis,
                momentum=self.momentum,
                epsilon=self.epsilon,
                mask=mask,
                axis_name=None if initializing else self.axis_name,
                axis_index_groups=None if initializing else self.axis_index_groups,
                running_variance=self.running_variance,
                dtype=dtypes.canonicalize_dtype(x, *params.values(), dtype=self.dtype),
                **options,
            )
        if inference is not True and not initializing:
            for name, variable in variables.items():
                variable.value = updated[name]
        return y
