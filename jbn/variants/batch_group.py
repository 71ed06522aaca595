"""Batch-group norm: statistics of groups of channels, over the batch."""

import dataclasses

import jax.numpy as jnp
from jax import lax

from jbn import _checks
from jbn._masking import mask_array
from jbn._norm import Norm, plain
from jbn.variants.composition import check_inner, check_one_set


def batch_group(groups: int, norm: Norm = plain) -> Norm:
    """Batch norm whose channels share statistics in groups: group norm over a batch of examples.

        mean_g, var_g = moments over the batch, the positions and the channels of group g
        y = (x - mean_g) * rsqrt(var_g + epsilon) * scale + bias           (of each channel)

    For batches that are too small for batch norm, and too good to be ignored as group norm does: k
    channels in a group have k times as many values. Over fewer examples than the batch has, put a ghost
    into it, `jbn.batch_group(8, jbn.ghost(size=4))`; with `size=1` training is that of group norm. As
    many groups as channels is batch norm, and so is the cost.

    Inference is by running statistics of the groups. The paper's code has them for each channel, and
    averages the moments within a group: the same but for the variance between batches.

    Args:
        groups: into how many groups of neighbours the channels divide, equally.
        norm: what is applied to the groups: `jbn.plain` or a variant.

    Returns:
        A `Norm`, whose statistics are of shape (groups,), and scale and bias of shape (C,).

    Raises:
        ValueError: an argument is not of the form above, or the norm is conditional or has parameters
            of several sets; from `init` and `apply`, several feature axes, or channels that do not
            divide.

    Example:
        >>> import jax.numpy as jnp, jbn
        >>> norm = jbn.batch_group(1)
        >>> params, batch_stats = norm.init(2)
        >>> x = jnp.array([[1., 3.]])                     # one example: a group of mean 2, variance 1
        >>> y, batch_stats = norm.apply(x, params, batch_stats, train=True, momentum=0.0)
        >>> print(y.round(2), params["scale"].shape, batch_stats["mean"])
        [[-1.  1.]] (2,) [2.]

    References:
        Summers and Dinneen (2020), "Four Things Everyone Should Know to Improve Batch Normalization",
        arXiv:1906.03548; Wu and He (2018), "Group Normalization", arXiv:1803.08494.
    """
    return BatchGroup(groups, norm)


@dataclasses.dataclass(frozen=True)
class BatchGroup(Norm):
    """See `batch_group`."""

    groups: int
    norm: Norm

    def __post_init__(self):
        _checks.positive_integer("groups", self.groups)
        check_inner("batch_group", self.norm, "scale", "bias")
        check_one_set("batch_group", self.norm)

    def init(self, features, **options):
        """Scale and bias for each channel, statistics for each group."""
        shape = _checks.number_of_features(features)
        self._check("features", shape)
        return self.norm.init(shape, **options)[0], self.norm.init(self.groups, **options)[1]

    def apply(self, x, params, batch_stats, *, train, axis=-1, mask=None, **options):
        """y and the updated statistics: see `jbn.batch_norm`."""
        self.check(options)
        x = _checks.input_array(x)
        features = _checks.feature_axes(axis, x.ndim)
        shape = tuple(x.shape[a] for a in features)
        self._check("x", shape)
        reduced = _checks.reduction_axes(features, x.ndim)
        # Next to the groups, but behind the examples, which the norm looks for in front.
        (groups_axis,) = features
        channels_axis = groups_axis + 1 if groups_axis else x.ndim

        def divided(v):
            if v.shape[groups_axis] == 1:
                return lax.expand_dims(v, (channels_axis,))
            pair = self.groups, shape[0] // self.groups
            v = v.reshape(*v.shape[:groups_axis], *pair, *v.shape[groups_axis + 1 :])
            return jnp.moveaxis(v, groups_axis + 1, channels_axis)

        params = {
            name: divided(p if p.ndim == x.ndim else lax.expand_dims(p, reduced))
            for name, p in _checks.params_dict(params, x, shape).items()
        }
        if mask is not None:
            mask = divided(mask_array(mask, x.shape))
        options.update(train=train, axis=features, mask=mask)
        y, batch_stats = self.norm.apply(divided(x), params, batch_stats, **options)
        return jnp.moveaxis(y, channels_axis, groups_axis + 1).reshape(x.shape), batch_stats

    def _check(self, name, shape):
        if len(shape) != 1 or shape[0] % self.groups:
            raise ValueError(
                f"`{name}` must have one feature axis, of channels that divide into {self.groups} "
                f"groups, got {shape}"
            )
