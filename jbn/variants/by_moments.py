"""Norms that make something of the moments of the batch before x is normalized by it."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jbn import _checks, _dtypes, _warnings
from jbn._moments import moments
from jbn._norm import Norm, keywords, plain
from jbn._normalize import normalize
from jbn._remat import MOMENTS, named
from jbn._statistics import Moments
from jbn._typing import Array, BatchStats, Flag
from jbn.ops.reduction import Reduction

Params = Mapping[str, Array]


@dataclasses.dataclass(frozen=True)
class ByMoments(Norm):
    """Plain batch norm in inference; a subclass says what becomes of a batch in training.

    The arguments are checked here. The rest is one compiled program for all calls that differ in their
    arrays alone.
    """

    def in_training(
        self,
        x: Array,
        params: Params,
        batch_stats: BatchStats,
        *,
        train: Flag,
        average: dict[str, Any],
        **options: Any,
    ) -> tuple[Array, dict[str, Array]]:
        """y and the updated statistics.

        `train` is True or traced, see `by_mode`; `average` are the keywords of `jbn.update_running`,
        the options those of `normalized_by`, and what the subclass takes besides.
        """
        raise NotImplementedError

    def in_inference(self, x, params, batch_stats, **options):
        """Plain batch norm by the running statistics."""
        known = keywords(plain)
        options = {name: v for name, v in options.items() if name in known}
        return plain.apply(x, params, batch_stats, train=False, **options)

    def statistics_shape(self, features: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the running statistics, from that of the feature axes."""
        return features

    def apply(self, x, params, batch_stats, *, train, axis=-1, momentum=0.99, mask=None, **options):
        """y and the updated statistics: see `jbn.batch_norm`."""
        self.check(options)
        x = _checks.input_array(x)
        axis = _checks.feature_axes(axis, x.ndim)
        shape = tuple(x.shape[a] for a in axis)
        params = _checks.params_dict(params, x, shape)
        shape = self.statistics_shape(shape)
        batch_stats = _checks.batch_stats_dict(batch_stats, shape, momentum is None)
        mask = None if mask is None else _checks.mask_array(mask, x.shape)
        train = _checks.flag("train", train)
        options.update(axis=axis, momentum=momentum, mask=mask)
        if train is False:
            return self.in_inference(x, params, batch_stats, **options)
        names = _checks.axis_names(options.get("axis_name"))
        groups = _checks.index_groups(options.get("axis_index_groups"), names)
        options.update(train=train, axis_name=names, axis_index_groups=groups)
        arrays = {name: v for name, v in options.items() if isinstance(v, jax.Array | np.ndarray)}
        static = tuple((name, v) for name, v in options.items() if name not in arrays)
        return _compiled(self, static, _warnings.is_initializing(), x, params, batch_stats, arrays)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _compiled(norm, static, initializing, x, params, batch_stats, arrays):
    del initializing  # what was traced while initializing, where less is checked, serves only there
    with jax.named_scope(f"jbn.{type(norm).__name__.lower()}"):
        options = {**dict(static), **arrays}
        average = {n: options.pop(n) for n in ("momentum", "running_variance") if n in options}
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
        x = x.astype(_dtypes.promote(x.dtype, dtype))
        m = named(measure(x, axis=axis, mask=mask, **options))
        used, params = statistics(m, params)
        return normalize(x, used, params, axis=axis, epsilon=epsilon, mask=mask, dtype=dtype), m

    return run(x, params)


def running(batch_stats: BatchStats, m: Moments) -> Moments:
    """The running statistics in place of the moments of a batch."""
    own = {"mean": jnp.asarray(m.mean), "var": jnp.asarray(m.var)}
    mean, var = (jnp.asarray(batch_stats[name]).astype(v.dtype) for name, v in own.items())
    return Moments(mean, var, m.count, jnp.zeros_like(mean))


def by_mode(train: Flag, training: Any, inference: Any) -> Any:
    """One of two trees by a flag; where that is traced, both have been computed."""
    if isinstance(train, bool):
        return training if train else inference
    return jax.tree.map(lambda t, i: jnp.where(train, t, jnp.asarray(i, t.dtype)), training, inference)
