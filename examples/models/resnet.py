"""ResNet-18 and ResNet-50 (He et al. 2015) in flax.linen, with any batch norm.

    model = resnet18(classes=10)                        # small images: 3x3 stem, no pooling
    model = resnet50(classes=1000, small_images=False)  # large ones: 7x7 stem and pooling, by 2 each
    model = resnet18(norm=functools.partial(jbn.linen.BatchNorm, axis_name="batch"))

A norm is a factory: `norm(use_running_average=..., name=..., scale_init=...)` makes the layer. The last
scale of each residual block is zero at first, so that a block begins as its shortcut. `dtype` is the
convolutions' alone: for half precision throughout, give the norm the same.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Initializer

import jbn

batch_norm = functools.partial(jbn.linen.BatchNorm, momentum=0.9)


class Affine(nn.Module):
    """What is left of a norm without statistics: x * scale + bias."""

    scale_init: Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Scales and shifts each feature, the last axis."""
        scale = self.param("scale", self.scale_init, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return x * scale.astype(x.dtype) + bias.astype(x.dtype)


def no_norm(
    *, use_running_average: bool, name: str, scale_init: Initializer = nn.initializers.ones
) -> Affine:
    """A norm's factory without batch norm: the affine parameters alone, initialized alike."""
    del use_running_average
    return Affine(scale_init, name=name)


class Block(nn.Module):
    """What the two kinds of residual block have in common.

    Attributes:
        features: channels of a 3x3 convolution.
        strides: of the first 3x3 convolution and of the shortcut.
        norm: factory of a norm.
        dtype: of the convolutions.
    """

    features: int
    strides: int = 1
    norm: Callable[..., nn.Module] = batch_norm
    dtype: Any = None


class BasicBlock(Block):
    """Two 3x3 convolutions, of ResNet-18 and ResNet-34."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """(N, H, W, C) to (N, H / strides, W / strides, features)."""
        conv = functools.partial(nn.Conv, use_bias=False, dtype=self.dtype)
        norm = functools.partial(self.norm, use_running_average=not train)
        y = conv(self.features, (3, 3), self.strides, padding=1, name="conv1")(x)
        y = nn.relu(norm(name="norm1")(y))
        y = conv(self.features, (3, 3), padding=1, name="conv2")(y)
        y = norm(name="norm2", scale_init=nn.initializers.zeros)(y)
        if x.shape != y.shape:
            x = conv(self.features, (1, 1), self.strides, name="conv_shortcut")(x)
            x = norm(name="norm_shortcut")(x)
        return nn.relu(x + y)


class Bottleneck(Block):
    """Convolutions 1x1, 3x3 and 1x1, of ResNet-50 and deeper; four times `features` come out."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """(N, H, W, C) to (N, H / strides, W / strides, 4 features)."""
        conv = functools.partial(nn.Conv, use_bias=False, dtype=self.dtype)
        norm = functools.partial(self.norm, use_running_average=not train)
        y = conv(self.features, (1, 1), name="conv1")(x)
        y = nn.relu(norm(name="norm1")(y))
        y = conv(self.features, (3, 3), self.strides, padding=1, name="conv2")(y)
        y = nn.relu(norm(name="norm2")(y))
        y = conv(4 * self.features, (1, 1), name="conv3")(y)
        y = norm(name="norm3", scale_init=nn.initializers.zeros)(y)
        if x.shape != y.shape:
            x = conv(4 * self.features, (1, 1), self.strides, name="conv_shortcut")(x)
            x = norm(name="norm_shortcut")(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """A residual network; its parameters and logits are float32.

    Attributes:
        stage_sizes: number of blocks of each stage. Each but the first halves the image.
        block: `BasicBlock` or `Bottleneck`.
        norm: factory of a norm.
        classes: number of logits.
        features: features of the first stage; each next one has twice as many.
        small_images: a 3x3 stem as for CIFAR's images, or 7x7 and max-pooling as for ImageNet's.
        dtype: of the convolutions.
        remat_policy: a policy of `jax.checkpoint_policies`: what the backward pass keeps of a block,
            computing the rest again. None keeps everything; `nothing_saveable` keeps the least.
    """

    stage_sizes: Sequence[int]
    block: type[BasicBlock] | type[Bottleneck]
    norm: Callable[..., nn.Module] = batch_norm
    classes: int = 10
    features: int = 64
    small_images: bool = True
    dtype: Any = None
    remat_policy: Callable[..., bool] | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Images (N, H, W, C) to logits (N, classes); `train` normalizes by the batch."""
        conv = functools.partial(nn.Conv, use_bias=False, dtype=self.dtype, name="conv")
        if self.small_images:
            x = conv(self.features, (3, 3), padding=1)(x)
        else:
            x = conv(self.features, (7, 7), 2, padding=3)(x)
        x = nn.relu(self.norm(use_running_average=not train, name="norm")(x))
        if not self.small_images:
            padding: Any = ((1, 1), (1, 1))
            x = nn.max_pool(x, (3, 3), (2, 2), padding)
        block = self.block
        if self.remat_policy is not None:
            block = nn.remat(block, policy=self.remat_policy, static_argnums=(2,))
        for stage, size in enumerate(self.stage_sizes):
            for index in range(size):
                strides = 2 if stage and not index else 1
                x = block(
                    self.features * 2**stage,
                    strides,
                    self.norm,
                    self.dtype,
                    name=f"stage{stage + 1}_block{index + 1}",
                )(x, train)
        x = jnp.mean(x, (1, 2), dtype=jnp.float32)
        return nn.Dense(self.classes, name="output")(x)


resnet18 = functools.partial(ResNet, stage_sizes=(2, 2, 2, 2), block=BasicBlock)
resnet50 = functools.partial(ResNet, stage_sizes=(3, 4, 6, 3), block=Bottleneck)
