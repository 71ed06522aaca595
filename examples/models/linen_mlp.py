"""A small dense network in flax.linen, with any norm."""

from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn


class MLP(nn.Module):
    """Dense 128 - norm - ReLU, twice, and a dense layer.

    Attributes:
        norm: factory of a norm, `norm(use_running_average=...)`; None for no norm.
    """

    norm: Callable[..., Any] | None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Images (N, H, W, 1) to logits (N, 10); `train` normalizes with the batch's statistics."""
        x = x.reshape(len(x), -1)
        for _ in range(2):
            # A norm has a bias of its own, and batch norm subtracts one before it with the mean.
            x = nn.Dense(128, use_bias=self.norm is None)(x)
            if self.norm is not None:
                x = self.norm(use_running_average=not train)(x)
            x = nn.relu(x)
        return nn.Dense(10)(x)
