"""`flax.nnx.BatchNorm` by a change of import: the same arguments, variables and checkpoints."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import errors, nnx
from flax.nnx.nn import dtypes
from flax.typing import Axes, Dtype, Initializer
from jax.typing import ArrayLike

from jbn import _checks
from jbn._norm import BY_LAYER, Norm, as_norm, plain
from jbn._typing import AxisIndexGroups, AxisName, Flag, RunningVariance

_NO_METADATA: Mapping[str, Any] = MappingProxyType({})


class BatchNorm(nnx.Module):
    """Batch normalization layer; what it computes is documented at `jbn.batch_norm`.

    The variables are Flax's: `scale` and `bias` are `nnx.Param` (None where not used), `mean` and
    `var` are `nnx.BatchStat`. `train()`, `eval()`, `set_attributes` and `nnx.view` switch the mode.

    Args:
        num_features: number of channels, or the sizes of several feature axes.
        use_running_average: normalize with the running statistics. Default False: train.
        axis, momentum, epsilon, axis_name, axis_index_groups: see `jbn.batch_norm`; `momentum=None`
            is the cumulative average and adds the variable `count`.
        dtype: dtype of the output. Default: promoted from the input, parameters and statistics.
        param_dtype: dtype of the parameters.
        use_bias, use_scale: whether there is a bias, a scale.
        bias_init, scale_init: their initializers; not kept.
        use_fast_variance: accepted and without effect: the statistics are exact either way.
        promote_dtype: decides the dtype of the output, as in Flax; the arithmetic is in float32 at
            least whatever it says.
        rngs: the random keys of the initializers.
        bias_metadata, scale_metadata, mean_metadata, var_metadata: metadata of the variables, such as
            `{"out_sharding": ("model",)}`.
        running_variance: see `jbn.update_running`.
        norm: the norm to apply, a `jbn.Norm`. Default: `jbn.plain`.
        mean_init, var_init: initializers of the running statistics, called without a random key.

    Example:
        >>> import jax.numpy as jnp, jbn
        >>> from flax import nnx
        >>> layer = jbn.nnx.BatchNorm(1, rngs=nnx.Rngs(0))
        >>> y = layer(jnp.array([[1.], [2.], [3.], [4.], [5.]]))
        >>> print(y.round(2).ravel(), layer.mean[...])
        [-1.41 -0.71  0.    0.71  1.41] [0.03]
    """

    _CLOSED_OVER = (
        "BatchNorm updates its running statistics in training: pass the model as an argument of the "
        "transformed function instead of closing over it, or call model.eval() first"
    )

    def __init__(
        self,
        num_features: int | Sequence[int],
        *,
        use_running_average: bool | None = False,
        axis: Axes = -1,
        momentum: ArrayLike | None = 0.99,
        epsilon: float = 1e-5,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: Initializer = nnx.initializers.zeros_init(),
        scale_init: Initializer = nnx.initializers.ones_init(),
        axis_name: AxisName | None = None,
        axis_index_groups: AxisIndexGroups | None = None,
        use_fast_variance: bool = True,
        promote_dtype: Callable = dtypes.promote_dtype,
        rngs: nnx.Rngs,
        bias_metadata: Mapping[str, Any] = _NO_METADATA,
        scale_metadata: Mapping[str, Any] = _NO_METADATA,
        mean_metadata: Mapping[str, Any] = _NO_METADATA,
        var_metadata: Mapping[str, Any] = _NO_METADATA,
        running_variance: RunningVariance = "biased",
        norm: Norm = plain,
        mean_init: Callable[..., Any] = nnx.initializers.zeros_init(),
        var_init: Callable[..., Any] = nnx.initializers.ones_init(),
    ):
        params, batch_stats = as_norm(norm).init(num_features, dtype=param_dtype, momentum=momentum)
        stats_inits = {"mean": mean_init, "var": var_init}
        stats_metadata = {"mean": mean_metadata, "var": var_metadata}
        for name, value in batch_stats.items():
            if name in stats_inits:
                value = stats_inits[name](None, value.shape, value.dtype)
            setattr(self, name, nnx.BatchStat(value, **stats_metadata.get(name, _NO_METADATA)))

        inits = {"scale": scale_init, "bias": bias_init}
        metadata = {"scale": scale_metadata, "bias": bias_metadata}
        used = {"scale": use_scale, "bias": use_bias}
        for name, value in params.items():
            if not used.get(name, True):
                setattr(self, name, nnx.data(None))
                continue
            if name in inits:
                value = inits[name](rngs.params(), value.shape, param_dtype)
            setattr(self, name, nnx.Param(value, **metadata.get(name, _NO_METADATA)))

        self._params = tuple(params)
        self._batch_stats = tuple(batch_stats)
        self.num_features = num_features
        self.use_running_average = use_running_average
        self.axis = axis
        self.momentum = momentum
        self.epsilon = epsilon
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.use_bias = use_bias
        self.use_scale = use_scale
        self.axis_name = axis_name
        self.axis_index_groups = axis_index_groups
        self.use_fast_variance = use_fast_variance
        self._promote_dtype = promote_dtype
        self.running_variance = running_variance
        self.norm = norm

    @property
    def promote_dtype(self) -> Callable:
        """As given to the constructor."""
        return self._promote_dtype

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
            use_running_average: takes precedence over the attribute; may be traced.
            mask: see `jbn.batch_norm`.
            options: what the norm takes besides.

        Returns:
            y of the shape of `x`; the running statistics are updated in place in training.
        """
        norm = as_norm(self.norm)
        norm.check(options, BY_LAYER)
        given = nnx.module.first_from(
            use_running_average,
            self.use_running_average,
            error_msg=(
                "No `use_running_average` argument was provided to BatchNorm; pass it to the "
                "constructor, to the call, or set it with `train()`, `eval()` or `nnx.view`"
            ),
        )
        inference = _checks.flag("use_running_average", given)
        x = jnp.asarray(x)
        shape = tuple(x.shape[a] for a in _checks.feature_axes(self.axis, x.ndim))
        if shape != _checks.number_of_features(self.num_features):
            raise ValueError(
                f"`num_features` must be the size of the feature axes of `x`, {shape} of {x.shape} for "
                f"axis={self.axis!r}, got {self.num_features!r}"
            )
        variables = {name: getattr(self, name) for name in (*self._params, *self._batch_stats)}
        arrays: dict[str, Any] = {n: None if v is None else v[...] for n, v in variables.items()}
        y, updated = norm.apply(
            x,
            {name: arrays[name] for name in self._params if arrays[name] is not None},
            {name: arrays[name] for name in self._batch_stats},
            train=_checks.negated(inference),
            axis=self.axis,
            momentum=self.momentum,
            epsilon=self.epsilon,
            mask=mask,
            axis_name=self.axis_name,
            axis_index_groups=self.axis_index_groups,
            running_variance=self.running_variance,
            dtype=self._output_dtype(x, arrays),
            **options,
        )
        if inference is not True:
            self._update(updated)
        return y

    def _update(self, batch_stats):
        try:
            for name, value in batch_stats.items():
                getattr(self, name).set_value(value)
        except errors.TraceContextError as error:
            error.add_note(self._CLOSED_OVER)
            raise

    def _output_dtype(self, x, arrays):
        """The dtype Flax gives its output: of the arrays once promoted, without promoting them."""
        statistics = [
            v for n in self._batch_stats if jnp.issubdtype((v := arrays[n]).dtype, jnp.inexact)
        ]
        arrays = (x, *statistics, *(arrays[name] for name in self._params))
        if self._promote_dtype is not dtypes.promote_dtype:
            promoted = jax.eval_shape(lambda a: self._promote_dtype(a, dtype=self.dtype), arrays)
            _, *params = promoted[len(statistics) :]
            promoted = (promoted[0], *params)
            arrays = tuple(None if v is None else jnp.zeros((), v.dtype) for v in promoted)
        return dtypes.canonicalize_dtype(*arrays, dtype=self.dtype)

    def set_view(self, use_running_average: bool | None = None):
        """Class method used by `nnx.view`; `nnx.view_info` reads it, and wants these two spaces.

        Args:
          use_running_average: as in the constructor; None leaves it.
        """
        if use_running_average is not None:
            self.use_running_average = use_running_average
