"""Norms that make something of the moments of the batch before x is normalized by it."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jbn import _checks, _dtypes, _warnings
from jbn._masking import mask_array
from jbn._mode import by_mode
from jbn._moments import moments
from jbn._norm import Norm, keywords, plain
from jbn._normalize import normalize
from jbn._remat import MOMENTS, named
from jbn._running import decay, updated
from jbn._statistics import Moments
from jbn._typing import Array, BatchStats, RunningVariance
from jbn.ops.reduction import Reduction
from jbn.ops.rounded import widened

Params = Mapping[str, Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Average:
    """`jbn.update_running` with its keywords.

    Attributes:
        weights: `decay(momentum)`.
        running_variance: see there.
    """

    weights: tuple[ArrayLike, ArrayLike] | None
    running_variance: RunningVariance = dataclasses.field(metadata={"static": True})

    def __call__(self, batch_stats: dict[str, Array], m: Moments) -> dict[str, Array]:
        """The statistics after one more batch."""
        return updated(batch_stats, m, self.weights, self.running_variance)


@dataclasses.dataclass(frozen=True)
class ByMoments(Norm):
    """Plain batch norm in inference; a subclass says what becomes of a batch in training.

    The arguments are checked here. The rest is one compiled program for all calls that differ in their
    arrays, in momentum and epsilon alone.
    """

    def in_training(
        self, x: Array, params: Params, batch_stats: BatchStats, *, average: Average, **options: Any
    ) -> tuple[Array, dict[str, Array]]:
        """y and the updated statistics.

        The options are those of `normalized_by`, and what the subclass takes besides.
        """
        raise NotImplementedError

    def in_inference(self, x, params, batch_stats, **options):
        """Plain batch norm by the running statistics."""
        return plain.apply(x, params, batch_stats, train=False, **of_plain(options))

    def statistics_shape(self, features: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the running statistics, from that of the feature axes."""
        return features

    def apply(
        self,
        x,
        params,
        batch_stats,
        *,
        train,
        axis=-1,
        momentum=0.99,
        epsilon=1e-5,
        mask=None,
        running_variance: RunningVariance = "biased",
        **options,
    ):
        """y and the updated statistics: see `jbn.batch_norm`."""
        self.check(options)
        x = _checks.input_array(x)
        axis = _checks.feature_axes(axis, x.ndim)
        shape = tuple(x.shape[a] for a in axis)
        params = _checks.params_dict(params, x, shape)
        shape = self.statistics_shape(shape)
        batch_stats = _checks.batch_stats_dict(batch_stats, shape, momentum is None)
        mask = None if mask is None else mask_array(mask, x.shape)
        _checks.choice("running_variance", running_variance, RunningVariance)
        names = _checks.axis_names(options.pop("axis_name", None))
        groups = _checks.index_groups(options.pop("axis_index_groups", None), names)
        average = Average(decay(_checks.momentum_value(momentum)), running_variance)
        arrays: dict[str, Any] = {
            n: v for n, v in options.items() if isinstance(v, jax.Array | np.ndarray)
        }
        arrays.update(mask=mask, epsilon=_checks.epsilon_value(epsilon))
        static = {n: v for n, v in options.items() if n not in arrays}
        static.update(axis=axis, axis_name=names, axis_index_groups=groups)

        def training(batch_stats):
            settings = tuple(static.items()), _warnings.is_initializing()
            return _compiled(self, *settings, x, params, batch_stats, average, arrays)

        def inference(batch_stats):
            return self.in_inference(x, params, batch_stats, **static, **arrays)

        train, mapped = _checks.flag("train", train), {"axis_name": names, "groups": groups}
        return by_mode(train, training, inference, batch_stats, x, mask, **mapped)


def of_plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those that plain batch norm takes."""
    return {name: v for name, v in options.items() if name in keywords(plain)}


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _compiled(norm, static, initializing, x, params, batch_stats, average, arrays):
    del initializing  # what was traced while initializing, where less is checked, serves only there
    with jax.named_scope(f"jbn.{type(norm).__name__.lower()}"):
        options = {**dict(static), **arrays}
        return norm.in_training(x, params, batch_stats, average=average, **options)


_keeping_moments = functools.partial(
    jax.checkpoint,
    prevent_cse=False,
    policy=jax.checkpoint_policies.save_only_these_names(MOMENTS),
)


def normalized_by(
    statistics: Callable[[Moments, Params], tuple[Moments, Params]],
    x: Array,
    params: Params,
    *,
    axis: tuple[int, ...],
    mask: Array | None,
    epsilon: Any = 1e-5,
    dtype: Any = None,
    measure: Callable[..., Moments] = moments,
    single: bool = False,
    **options: Any,
) -> tuple[Array, Moments]:
    """y = jbn.normalize(x, *statistics(m, params)), and m = jbn.moments(x), as one operation.

    The backward pass keeps x in its own dtype and the moments, and rounds the gradient of x once: half
    precision is made float32 here, and again in the backward pass. One value per channel is worth a
    warning, unless `single`.
    """
    if not single and mask is None and options.get("axis_name") is None:
        _warnings.warn_if_single(Reduction(_checks.reduction_axes(axis, x.ndim)).samples(x.shape))
    dtype = _dtypes.output(x, dtype)

    @_keeping_moments
    def run(x, params):
        x = widened(x, _dtypes.promote(x.dtype, dtype))
        m = named(measure(x, axis=axis, mask=mask, **options))
        used, params = statistics(m, params)
        return normalize(x, used, params, axis=axis, epsilon=epsilon, mask=mask, dtype=dtype), m

    return run(x, params)


def running(batch_stats: BatchStats, m: Moments) -> Moments:
    """The running statistics in place of the moments of a batch."""
    own = {"mean": jnp.asarray(m.mean), "var": jnp.asarray(m.var)}
    mean, var = (jnp.asarray(batch_stats[name]).astype(v.dtype) for name, v in own.items())
    return Moments(mean, var, m.count, jnp.zeros_like(mean))
