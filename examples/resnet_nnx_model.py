"""A small ResNet in flax.nnx, with batch norm or without."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Initializer

import jbn

batch_norm = functools.partial(jbn.nnx.BatchNorm, momentum=0.9)


class Affine(nnx.Module):
    """What is left of a norm without statistics: x * scale + bias."""

    def __init__(
        self, features: int, *, rngs: nnx.Rngs, scale_init: Initializer = nnx.initializers.ones
    ):
        self.scale = nnx.Param(scale_init(rngs.params(), (features,)))
        self.bias = nnx.Param(jnp.zeros((features,)))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scales and shifts each feature, the last axis."""
        return x * self.scale[...] + self.bias[...]


class Block(nnx.Module):
    """Two 3x3 convolutions and a shortcut; the last scale is zero at first."""

    def __init__(
        self,
        inputs: int,
        features: int,
        strides: int,
        *,
        norm: Callable[..., nnx.Module],
        rngs: nnx.Rngs,
    ):
        conv = functools.partial(nnx.Conv, use_bias=False, rngs=rngs)
        self.conv1 = conv(inputs, features, (3, 3), strides, padding=1)
        self.norm1 = norm(features, rngs=rngs)
        self.conv2 = conv(features, features, (3, 3), padding=1)
        self.norm2 = norm(features, rngs=rngs, scale_init=nnx.initializers.zeros)
        self.projects = strides > 1 or inputs != features
        if self.projects:
            self.conv_shortcut = conv(inputs, features, (1, 1), strides)
            self.norm_shortcut = norm(features, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(N, H, W, inputs) to (N, H / strides, W / strides, features)."""
        y = nnx.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        if self.projects:
            x = self.norm_shortcut(self.conv_shortcut(x))
        return nnx.relu(x + y)


class SmallResNet(nnx.Module):
    """A 3x3 stem and three blocks of one, two and four times `features`.

    Args:
        inputs: channels of the images.
        features: of the first block.
        norm: factory of a norm: `norm(features, rngs=..., scale_init=...)`.
        classes: number of logits.
        rngs: the random keys of the initializers.
    """

    def __init__(
        self,
        inputs: int,
        features: int,
        *,
        norm: Callable[..., nnx.Module] = batch_norm,
        classes: int = 10,
        rngs: nnx.Rngs,
    ):
        self.conv = nnx.Conv(inputs, features, (3, 3), padding=1, use_bias=False, rngs=rngs)
        self.norm = norm(features, rngs=rngs)
        make = functools.partial(Block, norm=norm, rngs=rngs)
        sizes = (features, features, 2 * features, 4 * features)
        self.blocks = nnx.List(
            [make(sizes[i], sizes[i + 1], 1 if i == 0 else 2) for i in range(len(sizes) - 1)]
        )
        self.output = nnx.Linear(sizes[-1], classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Images (N, H, W, inputs) to logits (N, classes)."""
        x = nnx.relu(self.norm(self.conv(x)))
        for block in self.blocks:
            x = block(x)
        return self.output(jnp.mean(x, (1, 2)))
