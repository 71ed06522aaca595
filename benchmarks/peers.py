"""How jbn and its peers are called: every library as functions of the same arrays, in training mode."""

# pyright: reportMissingImports=false
# The peers are not in the extra that the type checker runs with.

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen
import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np

import jbn
from benchmarks.reference import EPSILON

JBN = "jbn, worst way"


class Way(NamedTuple):
    """One way to call a library: two functions of the arrays that `arguments` makes."""

    forward: Callable[..., Any]  # (x, scale, bias, mean, var, mask) -> y
    backward: Callable[..., Any]  # (dy, x, scale, bias, mean, var, mask) -> (dx, dscale, dbias)
    masked: bool = False


def arguments(x: np.ndarray, masked: bool) -> tuple:
    """x, scale 1, bias 0, running mean 0 and variance 1, and a mask of ones or None."""
    zeros = np.zeros(x.shape[-1], np.float32)
    mask = np.ones((*x.shape[:-1], 1), bool) if masked else None
    return jax.tree.map(jnp.asarray, (x, zeros + 1, zeros, zeros, zeros + 1, mask))


def jax_way(apply: Callable[..., Any], jit: bool = True) -> Way:
    """Both functions, from the forward one in JAX."""

    def backward(dy, x, scale, bias, *rest):
        return jax.vjp(lambda *args: apply(*args, *rest), x, scale, bias)[1](dy)

    return Way(jax.jit(apply), jax.jit(backward)) if jit else Way(apply, backward)


def linen(layer: flax.linen.Module, x, params, batch_stats, mask=None):
    """A batch norm of Linen's, Flax's or jbn's, in training: y and the new running statistics."""
    variables = {"params": params, "batch_stats": batch_stats}
    y, updated = layer.apply(variables, x, mask=mask, mutable=["batch_stats"])
    return y, updated["batch_stats"]


def linen_apply(layer: flax.linen.Module, x, scale, bias, mean, var, mask):
    """The output of the same."""
    return linen(layer, x, {"scale": scale, "bias": bias}, {"mean": mean, "var": var}, mask)[0]


def jbn_functional(x, scale, bias, mean, var, mask):
    """The functional API."""
    params, batch_stats = {"scale": scale, "bias": bias}, {"mean": mean, "var": var}
    return jbn.batch_norm(x, params, batch_stats, train=True, epsilon=EPSILON, mask=mask)[0]


def jbn_nnx(x, scale, bias, mean, var, mask):
    """The NNX layer."""
    layer = jbn.nnx.BatchNorm(x.shape[-1], epsilon=EPSILON, rngs=flax.nnx.Rngs(0))
    for name, value in {"scale": scale, "bias": bias, "mean": mean, "var": var}.items():
        getattr(layer, name)[...] = value
    return layer(x, mask=mask)


def every_jbn(_: Sequence[int]) -> list[Way]:
    """The three APIs, with and without jit and mask."""
    layer = jbn.linen.BatchNorm(use_running_average=False, epsilon=EPSILON)
    applies = jbn_functional, functools.partial(linen_apply, layer), jbn_nnx
    ways = [jax_way(apply, jit) for apply in applies for jit in (True, False)]
    return [way._replace(masked=masked) for masked in (False, True) for way in ways]


def flax_linen(_: Sequence[int], fast: bool) -> list[Way]:
    """`flax.linen.BatchNorm`."""
    layer = flax.linen.BatchNorm(False, epsilon=EPSILON, use_fast_variance=fast)
    return [jax_way(functools.partial(linen_apply, layer))]


def haiku(shape: Sequence[int]) -> list[Way]:
    """`haiku.BatchNorm`."""
    import haiku as hk

    layer = hk.transform_with_state(lambda x: hk.BatchNorm(True, True, 0.99, eps=EPSILON)(x, True))
    params, state = layer.init(jax.random.key(0), jnp.zeros(shape))

    def apply(x, scale, bias, *_):
        given = {"scale": scale, "offset": bias}
        own = {
            module: {name: given[name].reshape(value.shape) for name, value in values.items()}
            for module, values in params.items()
        }
        return layer.apply(own, state, None, x)[0]

    return [jax_way(apply)]


def equinox(shape: Sequence[int]) -> list[Way]:
    """`equinox.nn.BatchNorm`: one sample with its channels first, under vmap."""
    import equinox as eqx

    layer = functools.partial(eqx.nn.BatchNorm, axis_name="batch", eps=EPSILON, mode="batch")
    bn, state = eqx.nn.make_with_state(layer)(shape[-1])

    def apply(x, scale, bias, *_):
        own = eqx.tree_at(lambda b: (b.weight, b.bias), bn, (scale, bias))
        call = jax.vmap(own, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
        return jnp.moveaxis(call(jnp.moveaxis(x, -1, 1), state)[0], 1, -1)

    return [jax_way(apply)]


def keras(shape: Sequence[int]) -> list[Way]:
    """`keras.layers.BatchNormalization` on the JAX backend, which is chosen at its first import."""
    os.environ["KERAS_BACKEND"] = "jax"
    import keras

    layer = keras.layers.BatchNormalization(epsilon=EPSILON)
    layer.build(tuple(shape))

    def apply(x, scale, bias, mean, var, _):
        return layer.stateless_call([scale, bias], [mean, var], x, training=True)[0]

    return [jax_way(apply)]


def torch(_: Sequence[int]) -> list[Way]:
    """`torch.nn.functional.batch_norm` on the CPU, on a contiguous array with the channels first."""
    import torch

    def graph(arrays):
        leaves = [torch.tensor(np.asarray(a), requires_grad=True) for a in arrays[:3]]
        x = leaves[0].movedim(-1, 1).contiguous()
        y = torch.nn.functional.batch_norm(x, None, None, *leaves[1:], training=True, eps=EPSILON)
        return leaves, y.movedim(1, -1)

    def backward(dy, *arrays):
        leaves, y = graph(arrays)
        return torch.autograd.grad(y, leaves, torch.tensor(dy))

    return [Way(lambda *arrays: graph(arrays)[1].detach(), backward)]


LIBRARIES: dict[str, Callable[[Sequence[int]], list[Way]]] = {
    "jbn": lambda shape: every_jbn(shape)[:1],
    JBN: every_jbn,
    "flax": functools.partial(flax_linen, fast=True),
    "flax, slow var": functools.partial(flax_linen, fast=False),
    "haiku": haiku,
    "equinox": equinox,
    "keras": keras,
    "torch": torch,
}
