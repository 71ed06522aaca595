"""Forms of batch norm that can be inverted: y is kept for the backward pass, x - mean made of it."""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp

from jbn import _dtypes
from jbn._form import Form, gain, per_position

# A scale below so many roundings of its bias leaves nothing of x in y.
_ROUNDINGS = 8.0


@dataclasses.dataclass(frozen=True)
class Identity(Form):
    """y is z, and y is kept. Of an activation, `parameter` is its slope or its alpha."""

    parameter: float
    lossless: ClassVar[bool] = False

    # Without selects, which XLA:CPU does not compute inside its sums but writes to memory for them.

    def activation(self, z):
        """y of z; at 0 too the derivative is the `slope`, not that of a maximum of two."""
        return _activated(self, z)

    def value(self, z):
        """The activation, without its derivative."""
        return z

    def inverse(self, y, parameter):
        """z of y."""
        del parameter
        return y

    def training_scale(self, reduction, affine, m, dtype):
        """At least what rounding leaves of x in y."""
        var, bias = jnp.asarray(m.var), affine.bias
        scale = jnp.ones_like(var) if affine.scale is None else affine.scale.astype(var.dtype)
        least = jnp.asarray(1e-30, var.dtype)
        if bias is not None:
            # Either may be per channel and the other of the rank of x.
            ndim = max(scale.ndim, bias.ndim)
            scale, bias = (
                per_position(reduction, v, ndim, var.dtype) if ndim > var.ndim else v.astype(var.dtype)
                for v in (scale, bias)
            )
            rounding = float(jnp.finfo(dtype).eps)
            least = jnp.maximum(least, _ROUNDINGS * rounding * jnp.abs(bias))
        size = jnp.maximum(jnp.abs(scale), least)
        return jnp.where(scale < 0, -size, size)

    def keep(self, reduction, x, y, m, affine):
        """The output, and the parameter as an array of its own for each sum."""
        del x
        affine = affine._replace(scale=self.training_scale(reduction, affine, m, y.dtype))
        return y, m, affine, jnp.asarray(self.parameter, m.mean.dtype)

    def deviation(self, reduction, kept):
        """(z - bias) / gain; the remainder, which y does not know apart from the mean, is in it."""
        y, m, affine, parameter = kept
        a = gain(reduction, m.var, affine, y.ndim).astype(m.mean.dtype)
        z = self.inverse(y.astype(a.dtype), parameter)
        if affine.bias is not None:
            z = z - per_position(reduction, affine.bias, y.ndim, a.dtype)
        return z / a + reduction.expand(m.remainder)


@dataclasses.dataclass(frozen=True)
class LeakyRelu(Identity):
    """y is z, or z times the parameter where z is negative."""

    def value(self, z):
        """y of z."""
        return jnp.maximum(z, self.parameter * z)

    def inverse(self, y, parameter):
        """z of y."""
        return jnp.minimum(y, y / parameter)

    def slope(self, kept):
        """dy / dz."""
        return jnp.maximum(_side(kept[0]), self.parameter)


@dataclasses.dataclass(frozen=True)
class Elu(Identity):
    """y is z, or the parameter times exp(z) - 1 where z is negative."""

    def value(self, z):
        """y of z."""
        return jnp.maximum(z, 0) + self.parameter * jnp.expm1(jnp.minimum(z, 0))

    def inverse(self, y, parameter):
        """z of y; nothing leads back from -alpha."""
        lowest = -1 + float(jnp.finfo(y.dtype).eps)
        return jnp.maximum(y, 0) + jnp.log1p(jnp.maximum(jnp.minimum(y, 0) / parameter, lowest))

    def slope(self, kept):
        """dy / dz."""
        y = kept[0].astype(_dtypes.promote(kept[0].dtype))
        return jnp.maximum(_side(y), 0) - jnp.minimum(_side(y), 0) * (y + self.parameter)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _activated(form, z):
    return form.value(z)


@_activated.defjvp
def _activated_jvp(form, primals, tangents):
    y = _activated(form, *primals)
    slope = form.slope((y,))
    return y, tangents[0] if slope is None else slope.astype(y.dtype) * tangents[0]


def _side(y):
    """1 for y >= 0, else -1; 1 for a masked NaN."""
    return jnp.sign(jnp.sign(y) + 0.5)


FORMS = {"identity": Identity, "leaky_relu": LeakyRelu, "elu": Elu}
