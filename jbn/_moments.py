"""Mean, variance and count of every channel, as a function of its own."""

import jax
from jax.typing import ArrayLike

from jbn import _checks, _collectives
from jbn._derivative import moments_of
from jbn._masking import as_weights
from jbn._statistics import Moments
from jbn._typing import Axis, AxisIndexGroups, AxisName
from jbn.ops.reduction import Reduction


def moments(
    x: ArrayLike,
    *,
    axis: Axis = -1,
    mask: ArrayLike | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: AxisIndexGroups | None = None,
    shift: ArrayLike | None = None,
) -> Moments:
    """Weighted mean and biased variance of every channel, exact whatever the mean.

        count = sum(w)
        mean  = sum(w * x) / count
        var   = sum(w * |x - mean|^2) / count

    with w the mask (all ones by default) and the sums over all axes but `axis`, and over all devices
    of `axis_name`. The sums are of x less a shift that is near the mean, so that nothing is lost
    however large the mean is. The devices' results are merged by their counts, means and squared
    deviations.

    A channel without samples has mean 0, variance 0 and count 0. A channel with a NaN or inf that is
    not masked, or whose squared deviations overflow (beyond about 1e18 in float32), has variance NaN;
    the other channels are not affected.

    Args:
        x: (..., C) array of rank 1 or more: real, integer (promoted to float32) or complex.
        axis: the feature axis or axes, as in Flax; all others are reduced. Default -1.
        mask: boolean, or float weights >= 0, broadcasting against `x` as in NumPy, from the last axis
            on: one over batch axes needs a last axis of one, `mask[..., None]`. Positions of weight 0
            may hold anything, NaN included. Gradients flow to float weights. Default None.
        axis_name: name, or tuple of names, of mapped axes whose devices share the statistics.
        axis_index_groups: lists of device indices that share statistics among themselves only;
            every index once, sizes may differ. Works under every transformation, vmap included.
        shift: what may be known of the mean beforehand, such as the running mean, of the shape of the
            feature axes. A TPU sums about it, and makes a pass less where it is near; the result
            depends on it in its last digits only, and on other platforms not at all. Default None.

    Returns:
        `Moments`, each array of the shape of the feature axes.

    Raises:
        ValueError, TypeError: an argument is not of the form above.
        NameError: `axis_name` is not bound.

    Example:
        >>> import jax.numpy as jnp, jbn
        >>> m = jbn.moments(jnp.array([[1.], [2.], [3.], [4.], [5.]]))
        >>> print(m.mean, m.var, m.count)
        [3.] [2.] [5.]

    References:
        Chan, Golub and LeVeque (1979), "Updating formulae and a pairwise algorithm for computing
        sample variances".
    """
    x = _checks.input_array(x)
    features = _checks.feature_axes(axis, x.ndim)
    shape = tuple(x.shape[a] for a in features)
    axis_name = _checks.axis_names(axis_name)
    groups = _checks.index_groups(axis_index_groups, axis_name)
    if shift is not None:
        shift = _checks.per_channel("shift", shift, shape)
    if axis_name is not None:
        _collectives.require_axis(axis_name, groups)
    reduction = Reduction(_checks.reduction_axes(features, x.ndim), axis_name, groups)
    return _jitted(reduction, x, as_weights(mask, x), shift)


@jax.jit
def _jitted(reduction, x, weights, shift):
    with jax.named_scope("jbn.moments"):
        return moments_of(reduction, x, weights, shift)
