"""A norm that collects the moments of all that reaches it, batch after batch."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jbn import _checks, _collectives, _dtypes
from jbn._moments import moments
from jbn._norm import Norm
from jbn._running import update_running
from jbn._statistics import Moments
from jbn._typing import Array, BatchStats, RunningVariance
from jbn.ops.local_moments import finite
from jbn.variants.mixture import pooled

# The moments of all values so far, as in `Moments`; and what the layer's statistics are to be by them.
TOTAL = ("total_mean", "total_var", "total_count", "total_remainder")
NEW = {"mean": "new_mean", "var": "new_var"}


def nothing_yet(batch_stats: BatchStats) -> dict[str, Array]:
    """The totals of no values, for a layer with these statistics."""
    stats = {name: jnp.asarray(batch_stats[name]) for name in NEW}
    stats = {name: v.astype(_dtypes.promote(v.dtype)) for name, v in stats.items()}
    mean, var = (jnp.zeros_like(v) for v in stats.values())
    total = dict(zip(TOTAL, (mean, var, var, mean), strict=True))
    return total | {NEW[name]: v for name, v in stats.items()}


@dataclasses.dataclass(frozen=True)
class Measured(Norm):
    """Inference of `norm`, by the batch's statistics or the running ones; both modes are alike.

    Its statistics are those of the norm, which stay as they are, with the moments of all values so far,
    and what the norm's should be by these. An axis name counts where it is bound. Where it is not, the
    batch is the whole one, however it is sharded.

    Attributes:
        norm: whose inference.
        by_batch: normalize by the moments of the batch, as in training; else by the running ones.
    """

    norm: Norm
    by_batch: bool

    def init(self, features, **options):
        """Those of the norm, and the totals."""
        params, batch_stats = self.norm.init(features, **options)
        return params, batch_stats | nothing_yet(batch_stats)

    def apply(
        self,
        x,
        params,
        batch_stats,
        *,
        train,
        axis=-1,
        mask=None,
        axis_name=None,
        axis_index_groups=None,
        running_variance: RunningVariance = "biased",
        **options,
    ):
        """y and the updated totals: see `jbn.batch_norm`."""
        del train
        self.check(options)
        names = {"axis_name": axis_name, "axis_index_groups": axis_index_groups}
        m = moments(x, axis=axis, mask=mask, **(names if _is_bound(axis_name) else {}))
        own = {n: v for n, v in batch_stats.items() if n not in (*TOTAL, *NEW.values())}
        used = {"mean": m.mean, "var": m.var} if self.by_batch else {}
        y, _ = self.norm.apply(x, params, own | used, train=False, axis=axis, mask=mask, **options)

        total: Any = _with(Moments(*(jnp.asarray(batch_stats[name]) for name in TOTAL)), m)
        # An old value that is not finite is no reason for the new one not to be.
        old = {n: jnp.where(total.count > 0, finite(own[n]), own[n]) for n in NEW}
        new = update_running(old, total, momentum=0.0, running_variance=running_variance)
        totals = dict(zip(TOTAL, vars(total).values(), strict=True))
        return y, own | totals | {NEW[name]: v for name, v in new.items()}


def _is_bound(axis_name):
    try:
        _collectives.require_axis(_checks.axis_names(axis_name), None)
    except NameError:
        return False
    return True


def _with(total, m):
    """The moments of all so far and of one more batch, less the channels where that is not finite."""
    valid = jnp.isfinite(m.mean) & jnp.isfinite(m.var)
    m = jax.tree.map(lambda v: jnp.where(valid, v, 0), m)
    both = jax.tree.map(lambda t, v: jnp.stack([t.astype(v.dtype), v]), total, m)
    return pooled(both, lambda *vs: [jnp.sum(v, 0) for v in vs], lambda s: jnp.expand_dims(s, 0))
