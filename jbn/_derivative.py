"""The derivative rule: of the moments, of the normalization by given moments, and of both as one.

With d = x - mean and a = scale * rsqrt(var + epsilon), and a dot for a tangent, per value

    dy = a * dx + d * da + (dbias - a * dmean)

where da and the last term are per channel, and dmean and dvar are sums of dx and of d * dx. It is
linear, and transposes into the analytic backward pass (`jbn.batch_norm_backward`): the sums of the
cotangent and of the cotangent times d, and one elementwise pass. A `custom_vjp` would forbid forward
mode; a rule that JAX transposes has both, under every transformation.
"""

import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jbn import _collectives, _dtypes
from jbn._form import Affine, Form, inverse_deviation, per_position, scale_and_shift
from jbn._masking import count as count_of
from jbn._masking import counted, harmless, squared, weighted
from jbn._remat import named
from jbn._statistics import Moments, batch_moments
from jbn._typing import Array
from jbn.ops.local_moments import divide
from jbn.ops.platform import choose
from jbn.ops.reduction import Reduction, known
from jbn.ops.rounded import rounded, rounded_for_sum

_NO_TANGENT: Any = Moments(None, None, None, None)  # type: ignore[arg-type]

# So many samples lose no digits of a sum over d by what rounding the mean leaves out.
_MANY = 4096


@jax.custom_jvp
def moments_of(reduction: Reduction, x: Array, weights: Array | None, shift: Array | None) -> Moments:
    """`batch_moments`, differentiable."""
    return batch_moments(reduction, x, weights, shift)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def normalized(
    form: Form,
    dtype: jnp.dtype,
    reduction: Reduction,
    x: Array,
    weights: Array | None,
    m: Moments,
    affine: Affine,
) -> Array:
    """y of given moments, in `dtype`, differentiable. The weights matter to the gradients alone."""
    del weights
    affine = affine._replace(scale=form.training_scale(reduction, affine, m, dtype))
    y = form.activation(scale_and_shift(reduction, x, m, affine)).astype(dtype)
    if form.lossless:
        return y
    # XLA takes a cast to half precision and back for none: on a GPU it would invert what y was before
    # the cast, make that from x, and so keep x. A TPU makes y from x by itself, and shall.
    return choose(y, gpu=jax.lax.optimization_barrier, default=lambda y: y)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def batch_normalized(
    form: Form,
    dtype: jnp.dtype,
    reduction: Reduction,
    x: Array,
    weights: Array | None,
    shift: Array | None,
    affine: Affine,
) -> tuple[Array, Moments]:
    """y and the moments of x itself, as one operation with one rule.

    The composition of the two above has the same value and derivatives. As one, a half precision `dx`
    is rounded once instead of twice, and what the form keeps is the only large residual.
    """
    m = batch_moments(reduction, x, weights, shift)
    return normalized(form, dtype, reduction, x, weights, m, affine), m


# In each rule what is linear in the tangents stands in a checkpoint: what it needs of d is made again
# in the backward pass, from what the form keeps, and that, in its own dtype, is the one large residual.
_recomputed = functools.partial(jax.checkpoint, prevent_cse=False)


@functools.partial(moments_of.defjvp, symbolic_zeros=True)
def _moments_jvp(primals, tangents):
    reduction, x, weights, shift = primals
    _, t, tweights, _ = _without_zeros(tangents)
    m = moments_of(reduction, x, weights, shift)

    @_recomputed
    def tangent(reduction, kept, weights, m, t, tweights):
        d = Form().deviation(reduction, _settled(kept))
        return _moments_tangent(reduction, d, weights, m, t, tweights)

    kept = Form().keep(reduction, x, x, m, Affine(None, None, None))
    return m, _zeros_for_none(m, tangent(reduction, kept, weights, m, t, tweights))


@functools.partial(normalized.defjvp, symbolic_zeros=True)
def _normalized_jvp(form, dtype, primals, tangents):
    reduction, x, weights, m, affine = primals
    _, t, _, tm, taffine = _without_zeros(tangents)
    y = normalized(form, dtype, reduction, x, weights, m, affine)

    @_recomputed
    def tangent(reduction, kept, weights, m, affine, t, tm, taffine):
        d = harmless(weights, form.deviation(reduction, _summed(kept)))
        centre = None if m.remainder is None else functools.partial(_taken_off, reduction, weights, m)
        return _output_tangent(
            form, dtype, reduction, kept, weights, d, m, affine, t, tm, taffine, centre
        )

    return y, tangent(
        reduction, form.keep(reduction, x, y, m, affine), weights, m, affine, t, tm, taffine
    )


@functools.partial(batch_normalized.defjvp, symbolic_zeros=True)
def _batch_normalized_jvp(form, dtype, primals, tangents):
    reduction, x, weights, shift, affine = primals
    _, t, tweights, _, taffine = _without_zeros(tangents)
    # In two steps, so that a policy of `jax.checkpoint` may save the moments and not y.
    m = named(moments_of(reduction, x, weights, shift))
    y = normalized(form, dtype, reduction, x, weights, m, affine)

    @_recomputed
    def tangent(reduction, kept, weights, m, affine, t, tweights, taffine):
        d = form.deviation(reduction, _settled(kept))
        # Once for both uses: each cast of its own would round its share of dx to half precision.
        t = None if t is None else t.astype(d.dtype)
        tm = _moments_tangent(reduction, d, weights, m, t, tweights)
        d = harmless(weights, form.deviation(reduction, _summed(kept)))
        centre = functools.partial(_centre if form.lossless else _taken_off, reduction, weights, m)
        ty = _output_tangent(
            form, dtype, reduction, kept, weights, d, m, affine, t, tm, taffine, centre
        )
        return ty, tm

    kept = form.keep(reduction, x, y, m, affine)
    ty, tm = tangent(reduction, kept, weights, m, affine, t, tweights, taffine)
    return (y, m), (ty, _zeros_for_none(m, tm))


def _settled(kept):
    """What was kept, for what is computed per value."""
    return _kept_arrays(kept, rounded, lambda v: v)


def _summed(kept):
    """What was kept, for one more sum.

    XLA:CPU hands a sum to a library that computes what is summed on the way, unless something else
    needs it as well: then x - mean is written to memory first. With a mean behind a barrier it does not
    see that it is the same.
    """
    return _kept_arrays(kept, rounded_for_sum, jax.lax.optimization_barrier)


def _kept_arrays(kept, widened, per_channel):
    ndim = max(v.ndim for v in jax.tree.leaves(kept))
    return jax.tree.map(
        lambda v: widened(v, _dtypes.promote(v.dtype)) if v.ndim == ndim else per_channel(v), kept
    )


def _moments_tangent(reduction, d, weights, m, t, tweights):
    """Tangent of the moments, linear in `t` and `tweights` (of x and the weights; None is zero).

        dmean = (sum(w * t) + sum(dw * d)) / count
        dvar  = (sum(2 * w * d * t) + sum(dw * (d^2 - var))) / count

    with d less the remainder. None where it is zero.
    """
    if t is None and tweights is None:
        return _NO_TANGENT
    sums = []
    if t is not None:
        wt = weighted(weights, t.astype(d.dtype))
        first = reduction.sum(wt)
        dt = reduction.sum(_real_product(counted(weights, d), wt))
        sums.append((first, 2 * (dt - _real_product(m.remainder, first))))
    if tweights is not None:
        centred = harmless(weights, d - reduction.expand(m.remainder))
        excess = squared(centred) - reduction.expand(m.var)
        sums.append(
            (reduction.sum(tweights.astype(centred.dtype) * centred), reduction.sum(tweights * excess))
        )
    totals = tuple(map(_total, zip(*sums, strict=True)))
    if tweights is not None:
        totals += (count_of(reduction, tweights, d.shape),)
    if reduction.axis_name is not None:
        totals = _collectives.psum(totals, reduction.axis_name, reduction.groups)
    first, second, *tcount = totals
    mean, var = divide(first, m.count), divide(second, m.count)
    return Moments(mean, var, tcount[0] if tcount else None, None)


def _output_tangent(form, y_dtype, reduction, kept, weights, d, m, affine, t, tm, taffine, centre):
    """Tangent of y, linear in the tangents: a * dx + d * da + dbias - a * dmean, times the slope.

    A tangent of None is zero, and what it would multiply is neither computed nor kept. `centre` is what
    takes the remainder off d * da, if there is one.
    """
    dtype = _dtypes.promote(d.dtype, *(v.dtype for v in affine[:2] if v is not None))

    def expand(s):
        return per_position(reduction, jnp.asarray(s), d.ndim, dtype)

    # Not a residual: a TPU would read one vector more.
    rstd = expand(inverse_deviation(m.var, affine.epsilon))
    a = rstd if affine.scale is None else expand(affine.scale) * rstd
    terms = [] if t is None else [a * t.astype(dtype)]
    shifts = [-(a * expand(v)) for v in (tm.mean, tm.remainder) if v is not None]
    if taffine.bias is not None:
        shifts.append(expand(taffine.bias))
    # One factor after the other: the cube of rstd would underflow at deviations of 1e13.
    by_var = [] if tm.var is None else [expand(tm.var)]
    if taffine.epsilon is not None:
        by_var.append(taffine.epsilon.astype(dtype))
    slopes = [-(a * (0.5 * rstd * (rstd * _total(by_var))))] if by_var else []
    if taffine.scale is not None:
        slopes.append(expand(taffine.scale) * rstd)
    if slopes:
        da = _total(slopes)
        terms.append(d.astype(dtype) * reduction.spread(da, d))
        if centre is not None:
            shifts.append(-centre(terms[-1], da))
    if shifts:
        terms.append(reduction.spread(_total(shifts), d))
    ty = _total(terms) if terms else jnp.zeros(d.shape, dtype)
    slope = form.slope(kept)
    if slope is not None:
        ty = harmless(weights, slope.astype(dtype)) * ty
    return ty.astype(y_dtype)


def _total(terms):
    return functools.reduce(operator.add, terms)


def _taken_off(reduction, weights, m, product, da):
    """remainder * da."""
    del weights, product
    return reduction.expand(jnp.asarray(m.remainder, da.dtype)) * da


def _centre(reduction, weights, m, product, da):
    """The same, where m are the moments of d: then it is the mean of d * da as well.

    On a CPU, whose sums about 0 know the mean to a rounding of itself only, taking the mean off makes
    dscale the sum of d times the centred cotangent: a cotangent whose own mean is large adds nothing.
    """
    stored = _taken_off(reduction, weights, m, product, da)
    samples = reduction.samples(product.shape)
    few = known(samples) and samples < _MANY
    per_channel = da.shape == reduction.expand(m.remainder).shape
    if few or reduction.axis_name is not None or not per_channel:
        return stored

    def mean(product, stored):
        del stored
        return reduction.expand(divide(reduction.sum(weighted(weights, product)), m.count))

    return choose(product, stored, cpu=mean, default=lambda product, stored: stored)


def _real_product(a, b):
    """Re(conj(a) * b): the derivative of |a|^2 / 2 along b."""
    if jnp.iscomplexobj(a):
        return a.real * b.real + a.imag * b.imag
    return a * b


def _zeros_for_none(primals: Any, tangents: Any) -> Any:
    """The tangents a derivative rule must return, which may not be None."""
    return jax.tree.map(lambda p, t: jnp.zeros_like(p) if t is None else t, primals, tangents)


def _without_zeros(tangents: Any) -> Any:
    """Symbolic zeros as None: no tangent, no work."""
    return jax.tree.map(
        lambda t: None if isinstance(t, SymbolicZero) else t,
        tangents,
        is_leaf=lambda t: isinstance(t, SymbolicZero),
    )
