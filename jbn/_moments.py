"""Mean, variance and count of every channel: over axes, under a mask, across devices."""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jbn import _checks, _collectives, _dtypes, ops
from jbn.ops.xla import again, nan_unless_finite, safe_divide, squared, weighted

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Moments:
    """Statistics of a batch, one value per channel, float32 at least.

    Attributes:
        mean: weighted mean, rounded to its dtype.
        var: biased (population) variance about the exact mean, >= 0.
        count: the sum of the weights: the number of samples where there is no mask.
        remainder: exact mean minus `mean`. At a mean of 1e5 float32 rounds in steps of 0.008, and
            `(x - mean) - remainder` is exact where `x - mean` has lost three digits.
    """

    mean: Any
    var: Any
    count: Any = None
    remainder: Any = None


class Reduction(NamedTuple):
    """What is static about the statistics: hashable, decided while tracing."""

    axes: tuple[int, ...]
    axis_name: _checks.AxisName | None = None
    groups: _collectives.Groups | None = None
    implementation: ops.Implementation | None = None


def moments(
    x: Any,
    *,
    axis: _checks.Axis = -1,
    mask: Any = None,
    axis_name: _checks.AxisName | None = None,
    axis_index_groups: _checks.AxisIndexGroups | None = None,
    implementation: ops.Implementation | None = None,
) -> Moments:
    """Weighted mean and biased variance of every channel, exact whatever the mean.

        count = sum(w)
        mean  = sum(w * x) / count
        var   = sum(w * |x - mean|^2) / count

    with w the mask (all ones by default) and the sums over all axes but `axis`, and over all devices
    of `axis_name`. The variance is E[x^2] - E[x]^2 only where no mean exceeds its deviation, so that
    nothing is lost; else it is taken about the mean. The devices' results are merged by their counts,
    means and squared deviations.

    A channel without samples has mean 0, variance 0 and count 0. A channel with a NaN or inf that is
    not masked, or whose squared deviations overflow (beyond about 1e18 in float32), has variance NaN;
    the other channels are not affected.

    Args:
        x: (..., C) array of rank 1 or more: real, integer (promoted to float32) or complex.
        axis: the feature axis or axes, as in Flax; all others are reduced. Default -1.
        mask: boolean, or float weights >= 0, broadcasting against `x`; positions of weight 0 may
            hold anything, NaN included. Gradients flow to float weights. Default None.
        axis_name: name, or tuple of names, of mapped axes whose devices share the statistics.
        axis_index_groups: lists of device indices that share statistics among themselves only;
            every index once, sizes may differ. Works under every transformation, vmap included.
        implementation: None (the default implementation) or "xla".

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
    axis_name = _checks.axis_names(axis_name)
    groups = _checks.index_groups(axis_index_groups, axis_name)
    ops.select(implementation)
    if axis_name is not None:
        _collectives.require_axis(axis_name, groups)
    reduction = Reduction(_checks.reduction_axes(features, x.ndim), axis_name, groups, implementation)
    weights = as_weights(mask, x)
    with jax.named_scope("jbn.moments"):
        return _jitted_moments(reduction, x, weights)


def as_weights(mask: Any, x: Array) -> Array | None:
    """The mask, checked, as weights in the real dtype of the statistics; None where there is none."""
    if mask is None:
        return None
    return _checks.mask_array(mask, x.shape).astype(_dtypes.real(_dtypes.promote(x.dtype)))


def batch_moments(reduction: Reduction, x: Array, weights: Array | None) -> Moments:
    """The forward pass of `moments`, on checked arguments and without a derivative rule."""
    count = _count(reduction, x, weights)
    op = ops.select(reduction.implementation)
    mean, remainder, var = op.moments(x, weights, count, reduction.axes)
    if reduction.axis_name is not None:
        return _merge(reduction, Moments(mean, var, count, remainder))
    return Moments(mean, var, count, remainder)


def deviation(reduction: Reduction, x: Array, weights: Array | None, m: Moments) -> Array:
    """x minus the rounded mean; 0 where a masked x is not finite, so that it poisons no sum.

    What the remainder would take off each element is left to the callers, who take it off the sums:
    per channel it costs nothing.
    """
    x = x.astype(_dtypes.promote(x.dtype))
    return without_padding(x - jax.lax.expand_dims(m.mean, reduction.axes), weights)


def without_padding(d: Array, weights: Array | None) -> Array:
    """d, and 0 where the weight is 0 and d is not finite: what is masked may be anything."""
    return d if weights is None else jnp.where((weights > 0) | jnp.isfinite(d), d, 0)


def deviation_again(reduction: Reduction, x: Array, weights: Array | None, m: Moments) -> Array:
    """The same for a sum, where the other is for elementwise arithmetic: see `again` of ops/xla.py."""
    x, weights, mean = again(x, weights, m.mean)
    return deviation(reduction, x, weights, dataclasses.replace(m, mean=mean))


def moments_tangent(
    reduction: Reduction,
    d: Array,
    weights: Array | None,
    m: Moments,
    t: Array | None,
    tweights: Array | None,
) -> Moments:
    """Tangent of the moments, linear in `t` and `tweights` (of x and the weights; None is zero).

        dmean = (sum(w * t) + sum(dw * d)) / count
        dvar  = (sum(2 * w * d * t) + sum(dw * (d^2 - var))) / count

    with d the `deviation` less the remainder. Its transpose is the moments' share of the analytic
    backward pass. All None where both tangents are.
    """
    if t is None and tweights is None:
        return Moments(None, None, None, None)
    axes = reduction.axes
    assert m.count is not None
    first, second = jnp.zeros_like(m.mean), jnp.zeros_like(m.var)
    tcount = jnp.zeros_like(m.count)
    if t is not None:
        wt = weighted(weights, t)
        first = jnp.sum(wt, axes)
        # Where the weight is 0, d may be as large as the padding is: its product would overflow.
        present = d if weights is None else jnp.where(weights > 0, d, 0)
        second = 2 * (jnp.sum(_real_product(present, wt), axes) - _real_product(m.remainder, first))
    if tweights is not None:
        d = d - jax.lax.expand_dims(m.remainder, axes)
        centred = squared(d) - jax.lax.expand_dims(m.var, axes)
        first = first + jnp.sum(weighted(tweights, d), axes)
        second = second + jnp.sum(tweights * centred, axes)
        tcount = _local_count(reduction, d.shape, tweights)
    if reduction.axis_name is not None:
        values = (first, second) if tweights is None else (first, second, tcount)
        first, second, *rest = _collectives.psum(values, reduction.axis_name, reduction.groups)
        tcount = rest[0] if rest else tcount
    return Moments(
        safe_divide(first, m.count), safe_divide(second, m.count), tcount, jnp.zeros_like(m.mean)
    )


def _real_product(a: Array, b: Array) -> Array:
    """Re(conj(a) * b): the derivative of |a|^2 / 2 along b."""
    if jnp.iscomplexobj(a):
        return a.real * b.real + a.imag * b.imag
    return a * b


def _local_count(reduction: Reduction, shape: tuple[int, ...], weights: Array) -> Array:
    repeats = math.prod(shape[a] for a in reduction.axes if weights.shape[a] != shape[a])
    features = tuple(n for a, n in enumerate(shape) if a not in reduction.axes)
    return jnp.broadcast_to(jnp.sum(weights, reduction.axes) * repeats, features)


def _count(reduction: Reduction, x: Array, weights: Array | None) -> Array:
    if weights is not None:
        return _local_count(reduction, x.shape, weights)
    features = tuple(n for a, n in enumerate(x.shape) if a not in reduction.axes)
    samples = math.prod(x.shape[a] for a in reduction.axes)
    return jnp.full(features, samples, _dtypes.real(_dtypes.promote(x.dtype)))


def _merge(reduction: Reduction, local: Moments) -> Moments:
    """The moments of all devices' samples, from each device's own (Chan et al. 1979).

    Two all-reduces. The first finds an anchor close to the global mean; the second sums the offsets
    from it and the squared deviations, which loses nothing however large the mean is.
    """
    axis_name, groups = reduction.axis_name, reduction.groups
    assert axis_name is not None and local.count is not None and local.remainder is not None
    count = local.count
    chosen = _collectives.is_first(axis_name, groups) & (count > 0)
    mean = jnp.where(count > 0, local.mean, 0)
    total, summed, reference, referenced = _collectives.psum(
        (count, weighted(count, mean), jnp.where(chosen, mean, 0), chosen.astype(count.dtype)),
        axis_name,
        groups,
    )
    anchor = safe_divide(summed, total)
    # One device's own mean, passed on exactly, serves as well as the rounded mean of means, and is
    # what makes one value repeated on all devices come out as exactly that value.
    near = jnp.abs(reference - anchor) <= 8 * jnp.finfo(count.dtype).eps * jnp.abs(anchor)
    anchor = jnp.where(near & (referenced > 0), reference, anchor)
    anchor = jnp.where(jnp.isfinite(anchor), anchor, 0)
    offset = (mean - anchor) + local.remainder
    offset, var = _collectives.psum(
        (weighted(count, offset), count * (local.var + squared(offset))), axis_name, groups
    )
    offset = nan_unless_finite(safe_divide(offset, total))
    var = safe_divide(var, total) - squared(offset)
    var = nan_unless_finite(jnp.where(var < 0, 0, var))
    mean = anchor + offset
    return Moments(mean, var, total, (anchor - mean) + offset)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def differentiable_moments(reduction: Reduction, x: Array, weights: Array | None) -> Moments:
    """`batch_moments` with its derivative rule."""
    return batch_moments(reduction, x, weights)


@functools.partial(differentiable_moments.defjvp, symbolic_zeros=True)
def _moments_jvp(reduction, primals, tangents):
    x, weights = primals
    t, tweights = without_zeros(tangents)
    m = differentiable_moments(reduction, x, weights)

    # Recomputed in the backward pass, d leaves x itself, in its own dtype, as the one large residual.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def tangent(x, weights, m, t, tweights):
        d = deviation(reduction, x, weights, m)
        t = None if t is None else t.astype(d.dtype)
        return moments_tangent(reduction, d, weights, m, t, tweights)

    return m, zeros_for_none(m, tangent(x, weights, m, t, tweights))


def zeros_for_none(primals: Any, tangents: Any) -> Any:
    """The tangents a derivative rule must return, which may not be None."""
    return jax.tree.map(lambda p, t: jnp.zeros_like(p) if t is None else t, primals, tangents)


def without_zeros(tangents: Any) -> Any:
    """Symbolic zeros as None: no tangent, no work."""
    return jax.tree.map(
        lambda t: None if isinstance(t, SymbolicZero) else t,
        tangents,
        is_leaf=lambda t: isinstance(t, SymbolicZero),
    )


_jitted_moments = jax.jit(differentiable_moments, static_argnums=0)
