"""ResNet-18 (He et al. 2015) for small images in flax.nnx, with any batch norm."""

import functools
from collections.abc import Callable, Sequence

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


class ResNet(nnx.Module):
    """A 3x3 stem and stages of blocks.

    Args:
        inputs: channels of the images.
        features: of the first stage; each next one has twice as many.
        stage_sizes: number of blocks of each stage. Each but the first halves the image.
        norm: factory of a norm: `norm(features, rngs=..., scale_init=...)`.
        classes: number of logits.
        rngs: the random keys of the initializers.
    """

    def __init__(
        self,
        inputs: int,
        features: int,
        *,
        stage_sizes: Sequence[int] = (2, 2, 2, 2),
        norm: Callable[..., nnx.Module] = batch_norm,
        classes: int = 10,
        rngs: nnx.Rngs,
    ):
        self.conv = nnx.Conv(inputs, features, (3, 3), padding=1, use_bias=False, rngs=rngs)
        self.norm = norm(features, rngs=rngs)
        blocks, last = [], features
        for stage, size in enumerate(stage_sizes):
            for index in range(size):
                strides = 2 if stage and not index else 1
                width = features * 2**stage
                blocks.append(Block(last, width, strides, norm=norm, rngs=rngs))
                last = width
        self.blocks = nnx.List(blocks)
        self.output = nnx.Linear(last, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Images (N, H, W, inputs) to logits (N, classes)."""
        x = nnx.relu(self.norm(self.conv(x)))
        for block in self.blocks:
            x = block(x)
        return self.output(jnp.mean(x, (1, 2)))
