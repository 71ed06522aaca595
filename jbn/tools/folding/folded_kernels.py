"""The affine map of a trained batch norm as part of the kernel and bias beside it."""

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.typing import ArrayLike

from jbn import _checks, _dtypes
from jbn._form import Affine, gain
from jbn._normalize import normalize
from jbn._statistics import Moments
from jbn._typing import Array, BatchStats, Params
from jbn.ops.reduction import Reduction

Layout = Literal["flax", "flax_transposed", "torch", "torch_transposed"]


# The axes of the input and of the output channels, and which of the two counts those of all groups.
_AXES = {
    "flax": (-2, -1, -1),
    "flax_transposed": (-1, -2, -2),
    "torch": (1, 0, 0),
    "torch_transposed": (0, 1, 0),
}


def fold_into_previous(
    kernel: ArrayLike,
    bias: ArrayLike | None,
    params: Params,
    batch_stats: BatchStats,
    *,
    epsilon: float = 1e-5,
    layout: Layout = "flax",
    groups: int = 1,
) -> tuple[Array, Array]:
    """Kernel and bias of a layer that does what it did and the batch norm behind it, in inference.

        gain   = scale * rsqrt(var + epsilon)
        kernel = kernel * gain                               for each output channel
        bias   = (bias - mean) * gain + bias of the norm

    Exact for every linear layer: dense, convolution of any rank, grouped, depthwise, dilated or
    transposed, whatever its strides and padding.

    | layout | kernel | of |
    |---|---|---|
    | "flax" | (..., in / groups, out) | all layers of Flax, but for the next line |
    | "flax_transposed" | (..., out, in) | ConvTranspose with `transpose_kernel=True` |
    | "torch" | (out, in / groups, ...) | Linear, Conv1d to Conv3d |
    | "torch_transposed" | (in, out / groups, ...) | ConvTranspose1d to ConvTranspose3d |

    Args:
        kernel: the weights, as laid out above. That of a DenseGeneral with several axes of features:
            reshape it to one, and what else is per feature.
        bias: (out,), or None for a layer without.
        params: {"scale": (out,), "bias": (out,)} of the norm, each optional.
        batch_stats: {"mean": (out,), "var": (out,)} of the norm.
        epsilon: of the norm. Default 1e-5.
        layout: see above.
        groups: of a grouped convolution; it matters for "torch_transposed" alone, where the channels of
            a group are those of an input channel. Default 1.

    Returns:
        The kernel, and a bias also where there was none, in the dtypes of those given (of the kernel,
        for a new bias). The arithmetic is in float32 at least.

    Raises:
        ValueError, TypeError: an argument is not of the form above.

    Example:
        >>> import jax.numpy as jnp, jbn
        >>> kernel, bias = jnp.array([[1., 2.]]), jnp.array([0., 1.])
        >>> batch_stats = {"mean": jnp.array([1., 1.]), "var": jnp.array([4., 1.])}
        >>> kernel, bias = jbn.tools.fold_into_previous(kernel, bias, {}, batch_stats)
        >>> print(kernel.round(2), bias.round(2))
        [[0.5 2. ]] [-0.5  0. ]

    References:
        Jacob et al. (2018), "Quantization and Training of Neural Networks for Efficient
        Integer-Arithmetic-Only Inference", arXiv:1712.05877, section 3.2.
    """
    kernel, axes = _laid_out(kernel, layout, groups)
    params, moments, epsilon = _checked(params, batch_stats, epsilon, axes.channels(axes.outputs))
    bias = _bias(bias, kernel, axes)
    return _into_previous(axes, kernel, bias, params, moments, epsilon)


def fold_into_next(
    kernel: ArrayLike,
    bias: ArrayLike | None,
    params: Params,
    batch_stats: BatchStats,
    *,
    epsilon: float = 1e-5,
    layout: Layout = "flax",
    groups: int = 1,
) -> tuple[Array, Array]:
    """Kernel and bias of a layer that does what it did and the batch norm before it, in inference.

        gain, shift = scale * rsqrt(var + epsilon), bias of the norm - mean * gain
        kernel = kernel * gain                               for each input channel
        bias   = bias + sum of kernel * shift                over the input channels and positions

    Exact for a dense layer, and for a convolution that pads with nothing or with its own input: VALID,
    CIRCULAR, REFLECT. Where it pads with zeros, the shift is missing there: pad its input by hand with
    `fold_padding`, which the norm makes zero, and convolve with VALID.

    Where means are large against the deviations, as of raw data, the norm is exact and the layer with
    the norm in it is not: the mean is subtracted from sums, after they have been rounded.

    Args:
        kernel, bias, epsilon, layout: as in `fold_into_previous`.
        params: {"scale": (in,), "bias": (in,)} of the norm, each optional.
        batch_stats: {"mean": (in,), "var": (in,)} of the norm.
        groups: of a grouped or depthwise convolution. Default 1.

    Returns:
        The kernel, and a bias also where there was none, as in `fold_into_previous`.

    Raises:
        ValueError, TypeError: an argument is not of the form above.

    Example:
        >>> import jax.numpy as jnp, jbn
        >>> kernel = jnp.array([[1., 2.]])
        >>> batch_stats = {"mean": jnp.array([1.]), "var": jnp.array([4.])}
        >>> kernel, bias = jbn.tools.fold_into_next(kernel, None, {}, batch_stats)
        >>> print(kernel.round(2), bias.round(2))
        [[0.5 1. ]] [-0.5 -1. ]
    """
    kernel, axes = _laid_out(kernel, layout, groups)
    params, moments, epsilon = _checked(params, batch_stats, epsilon, axes.channels(axes.inputs))
    bias = _bias(bias, kernel, axes)
    return _into_next(axes, kernel, bias, params, moments, epsilon)


def fold_padding(params: Params, batch_stats: BatchStats, *, epsilon: float = 1e-5) -> Array:
    """The value of each channel that batch norm makes zero, in inference.

        mean - bias * sqrt(var + epsilon) / scale

    What to pad the input with, in place of the zeros behind the norm, where the norm is folded into a
    convolution after it.

    Args:
        params: {"scale": (C,), "bias": (C,)} of the norm, each optional.
        batch_stats: {"mean": (C,), "var": (C,)} of the norm.
        epsilon: of the norm. Default 1e-5.

    Returns:
        (C,), float32 at least.

    Raises:
        ValueError: a scale is 0, where the norm makes `bias` of everything; or an argument is not of
            the form above. Traced scales cannot be looked at, and give inf or NaN.

    Example:
        >>> import jax.numpy as jnp, jbn
        >>> params = {"scale": jnp.array([1.]), "bias": jnp.array([3.])}
        >>> batch_stats = {"mean": jnp.array([1.]), "var": jnp.array([4.])}
        >>> print(jbn.tools.fold_padding(params, batch_stats).round(2))
        [-5.]
    """
    params, m, epsilon = _checked(params, batch_stats, epsilon)
    scale, bias = params.get("scale"), params.get("bias")
    if scale is not None and not isinstance(scale, Tracer) and not jnp.all(scale):
        raise ValueError(
            f"`params['scale']` must not be 0 where a convolution pads with zeros, and is for "
            f"{jnp.sum(scale == 0)} of {scale.size} channels: of no input does the norm make 0 there"
        )
    mean, var = jnp.asarray(m.mean), jnp.asarray(m.var)
    if bias is None:
        return mean
    a = gain(Reduction(()), var, Affine(scale, None, epsilon), 1)
    return mean - bias.astype(a.dtype) / a


class _Axes(NamedTuple):
    """How a kernel is laid out."""

    shape: tuple[int, ...]
    inputs: int
    outputs: int
    grouped: int
    groups: int

    def channels(self, axis: int) -> int:
        """The number of channels of all groups."""
        return self.shape[axis] * (1 if axis == self.grouped else self.groups)

    def divide(self, kernel: Array) -> Array:
        """(groups, ...): one kernel for each group, whose axes are one further back."""
        a = self.grouped
        shape = (*self.shape[:a], self.groups, self.shape[a] // self.groups, *self.shape[a + 1 :])
        return jnp.moveaxis(kernel.reshape(shape), a, 0)

    def join(self, kernel: Array) -> Array:
        """The inverse of `divide`."""
        return jnp.moveaxis(kernel, 0, self.grouped).reshape(self.shape)

    def per_channel(self, axis: int) -> Reduction:
        """From a divided kernel to its groups and their channels, and back."""
        return Reduction(tuple(a for a in range(1, 1 + len(self.shape)) if a != 1 + axis))


def _laid_out(kernel, layout, groups):
    kernel = _checks.array("kernel", kernel, jnp.inexact)
    _checks.choice("layout", layout, Layout)
    if kernel.ndim < 2:
        raise ValueError(f"`kernel` must have axes of input and output channels, got {kernel.shape}")
    inputs, outputs, grouped = (a % kernel.ndim for a in _AXES[layout])
    if groups < 1 or kernel.shape[grouped] % groups:
        raise ValueError(
            f"`groups` must divide axis {grouped} of `kernel` in the layout {layout!r}, of size "
            f"{kernel.shape[grouped]}, got {groups!r}"
        )
    return kernel, _Axes(kernel.shape, inputs, outputs, grouped, groups)


def _checked(params, batch_stats, epsilon, channels=None):
    """Parameters, statistics in float32 at least, epsilon."""
    stats = _checks.batch_stats_dict(batch_stats, None, cumulative=False)
    mean, var = (stats[name].astype(_dtypes.promote(stats[name].dtype)) for name in ("mean", "var"))
    shape = mean.shape if channels is None else (channels,)
    if mean.ndim != 1 or not mean.shape == var.shape == shape:
        expected = (
            "(C,)" if channels is None else f"{shape}, as `kernel`, `layout` and `groups` have it"
        )
        raise ValueError(
            f"`batch_stats` must hold 'mean' and 'var' with a value for each channel, {expected}, got "
            f"{mean.shape} and {var.shape}"
        )
    params = _checks.params_dict(params, mean, shape)
    return params, Moments(mean, var), _checks.epsilon_value(epsilon)


def _bias(bias, kernel, axes):
    shape = (axes.channels(axes.outputs),)
    bias = jnp.zeros(shape, kernel.dtype) if bias is None else _checks.array("bias", bias, jnp.inexact)
    if bias.shape != shape:
        raise ValueError(f"`bias` must be None or of shape {shape}, as `kernel`, got {bias.shape}")
    return bias


def _gain(axes, axis, kernel, params, m, epsilon):
    """A divided kernel and the gain of its channels, broadcasting against it, in one dtype."""
    kernel = axes.divide(kernel)
    var, scale = m.var.reshape(axes.groups, -1), params.get("scale")
    scale = None if scale is None else scale.reshape(var.shape)
    a = gain(axes.per_channel(axis), var, Affine(scale, None, epsilon), kernel.ndim)
    dtype = _dtypes.promote(kernel.dtype, a.dtype)
    return kernel.astype(dtype), a.astype(dtype)


@functools.partial(jax.jit, static_argnums=0)
def _into_previous(axes, kernel, bias, params, m, epsilon):
    wide, a = _gain(axes, axes.outputs, kernel, params, m, epsilon)
    return axes.join(wide * a).astype(kernel.dtype), normalize(bias, m, params, epsilon=epsilon)


@functools.partial(jax.jit, static_argnums=0)
def _into_next(axes, kernel, bias, params, m, epsilon):
    wide, a = _gain(axes, axes.inputs, kernel, params, m, epsilon)
    shift = normalize(jnp.zeros_like(m.mean), m, params, epsilon=epsilon).reshape(axes.groups, -1)
    added = wide * axes.per_channel(axes.inputs).expand(shift).astype(wide.dtype)
    added = axes.per_channel(axes.outputs).sum(added).ravel()
    return axes.join(wide * a).astype(kernel.dtype), (bias.astype(added.dtype) + added).astype(
        bias.dtype
    )
