"""A small convolutional network in flax.linen, with any norm."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import linen as nn


class CNN(nn.Module):
    """Convolutions of 3x3, each with a norm and a ReLU behind it, and a dense layer.

    Attributes:
        norm: factory of a norm, `norm(use_running_average=...)`; None for no norm.
        input_norm: likewise, of a first layer that normalizes the images.
        features, strides: of the convolutions.
    """

    norm: Callable[..., Any] | None
    input_norm: Callable[..., Any] | None = None
    features: Sequence[int] = (32, 64)
    strides: Sequence[int] = (1, 1)

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Images (N, H, W, 1) to logits (N, 10); `train` normalizes with the batch's statistics."""
        if self.input_norm is not None:
            x = self.input_norm(use_running_average=not train, name="input_norm")(x)
        for features, stride in zip(self.features, self.strides, strict=True):
            # A norm has a bias of its own, and batch norm subtracts one before it with the mean.
            x = nn.Conv(features, (3, 3), stride, use_bias=self.norm is None)(x)
            if self.norm is not None:
                x = self.norm(use_running_average=not train)(x)
            x = nn.relu(x)
        return nn.Dense(10)(x.reshape(len(x), -1))
