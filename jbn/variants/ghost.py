"""Ghost batch norm: statistics per group of examples, not of the whole batch."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from jbn import _checks, _warnings
from jbn._norm import Norm
from jbn._statistics import Moments
from jbn.ops.local_moments import divide
from jbn.variants.by_moments import ByMoments, normalized_by
from jbn.variants.grouping import divided
from jbn.variants.mixture import pooled

GroupsRunning = Literal["batch", "groups", "sequential"]


def ghost(
    groups: int | None = None,
    size: int | None = None,
    *,
    interleaved: bool = False,
    uneven: bool = False,
    running: GroupsRunning = "batch",
) -> Norm:
    """Ghost batch norm: each group of examples is normalized by its own statistics in training.

        mean_g, var_g = moments of the examples of group g
        y = (x - mean_g) * rsqrt(var_g + epsilon) * scale + bias

    For batches so large that batch norm no longer regularizes, and for a batch on one device that is
    to behave as on several: as many groups as devices is unsynchronized batch norm. Inference knows no
    groups. One group is plain batch norm; the cost is that of plain batch norm.

    `running` says what the running statistics are averages of:

        "batch"       the mean and variance of the whole batch, exact: the variance within the groups
                      and that of their means (init2winit, four_things_batch_norm)
        "groups"      the means of mean_g and var_g (tf_keras): groups of n leave out 1 / n of the
                      variance, half of it with n = 2, and inference is not normalized
        "sequential"  one update for each group in turn (pytorch-tabnet, with
                      `running_variance="unbiased"`; composer, with momentum 1 - (1 - m) / groups too)

    Args:
        groups: into how many groups of equal size the batch, the first axis that is reduced, divides.
        size: instead: examples in each.
        interleaved: example i is in group i % groups (tf_keras). Default: groups are contiguous.
        uneven: allow what does not divide, as torch.chunk does: groups of ceil(batch / groups)
            examples, or of `size`, and fewer in the last, or last ones. Costs a copy of `x`.
        running: see above.

    Returns:
        A `Norm`. With `axis_name`, group g is that of all devices together. A mask may leave groups of
        different counts, by which they are weighted.

    Raises:
        ValueError: an argument is not of the form above; from `apply`, a batch does not divide.

    Example:
        >>> import jax.numpy as jnp, jbn
        >>> norm = jbn.ghost(groups=2)
        >>> params, batch_stats = norm.init(1)
        >>> x = jnp.array([[1.], [3.], [11.], [13.]])
        >>> y, batch_stats = norm.apply(x, params, batch_stats, train=True, momentum=0.0)
        >>> print(y.round(2).ravel(), batch_stats["mean"], batch_stats["var"])
        [-1.  1. -1.  1.] [7.] [26.]

    References:
        Hoffer, Hubara and Soudry (2017), "Train longer, generalize better", arXiv:1705.08741; Summers
        and Dinneen (2020), "Four Things Everyone Should Know to Improve Batch Normalization",
        arXiv:1906.03548.
    """
    return Ghost(groups, size, interleaved, uneven, running)


@dataclasses.dataclass(frozen=True)
class Ghost(ByMoments):
    """See `ghost`."""

    groups: int | None
    size: int | None
    interleaved: bool
    uneven: bool
    running: GroupsRunning

    def __post_init__(self):
        if (self.groups is None) == (self.size is None):
            raise ValueError(
                f"exactly one of `groups` and `size` must be given, got groups={self.groups!r}, "
                f"size={self.size!r}"
            )
        name = "groups" if self.size is None else "size"
        _checks.positive_integer(name, getattr(self, name))
        _checks.choice("running", self.running, GroupsRunning)

    def in_training(self, x, params, batch_stats, *, average, axis, mask, **options):
        """Plain batch norm with the groups as one more feature axis."""
        uneven = self.uneven or _warnings.is_initializing()
        grouping = divided(x.shape, axis, self.groups, self.size, self.interleaved, uneven)
        if mask is not None or grouping.filled:
            mask = grouping.divide_mask(jnp.ones([1] * x.ndim, bool) if mask is None else mask)
        params = {
            name: grouping.divide(p) if p.ndim == x.ndim else grouping.per_group(p)
            for name, p in params.items()
        }
        y, m = normalized_by(
            lambda m, params: (m, params),
            grouping.divide(x),
            params,
            axis=grouping.features(axis),
            mask=mask,
            shift=grouping.per_group(batch_stats["mean"]),
            **options,
        )
        for new in self._averaged(m, grouping.axis):
            batch_stats = average(batch_stats, new)
        return grouping.join(y), batch_stats

    def _averaged(self, m, axis):
        """What the running statistics are updated with, one after the other."""
        if self.running == "sequential":
            groups = range(m.mean.shape[axis])
            return [jax.tree.map(lambda v, g=g: jnp.take(v, g, axis), m) for g in groups]
        whole = pooled(
            m, lambda *vs: [jnp.sum(v, axis) for v in vs], lambda s: jnp.expand_dims(s, axis)
        )
        if self.running == "batch":
            return [whole]
        count = jnp.asarray(whole.count)
        var = divide(jnp.sum(m.count * m.var, axis), count)
        groups = jnp.sum(m.count > 0, axis).astype(count.dtype)
        # Each group takes one degree of freedom from what is unbiased.
        return [Moments(whole.mean, var, divide(count, groups))]
