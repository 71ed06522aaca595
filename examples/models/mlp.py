"""Dense layers with a norm, as functions: a `jbn.Norm` without a framework."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

import jbn

he_normal = jax.nn.initializers.he_normal()


def init(
    key: jax.Array,
    sizes: Sequence[int],
    *,
    norm: jbn.Norm | None = jbn.plain,
    kernel_init: Callable[..., jax.Array] = he_normal,
) -> tuple[list[dict[str, Any]], list[dict[str, jax.Array]]]:
    """Parameters of each layer, and statistics of each but the last, which has no norm."""
    shapes = list(itertools.pairwise(sizes))
    keys = jax.random.split(key, len(shapes))
    layers: list[dict[str, Any]] = [
        {"kernel": kernel_init(k, shape), "bias": jnp.zeros((1, shape[1]))}
        for k, shape in zip(keys, shapes, strict=True)
    ]
    batch_stats = []
    if norm is None:
        return layers, batch_stats
    for layer in layers[:-1]:
        # Batch norm has a bias of its own, and subtracts one before it with the mean.
        features = layer.pop("bias").shape[1]
        layer["norm"], stats = norm.init(features)
        batch_stats.append(stats)
    return layers, batch_stats


def apply(
    layers: Sequence[dict[str, Any]],
    batch_stats: Sequence[dict[str, jax.Array]],
    x: Any,
    *,
    norm: jbn.Norm | None = jbn.plain,
    activation: Callable[[jax.Array], jax.Array] = jax.nn.relu,
    **options: Any,
) -> tuple[jax.Array, list[dict[str, jax.Array]]]:
    """x (N, ...) to what the last layer gives, before any activation, and the new statistics.

    Args:
        layers, batch_stats: from `init`, or some of them, one behind another.
        x: flattened first.
        norm: that of `init`.
        activation: between the layers.
        options: of the norm.
    """
    x, remaining, updated = x.reshape(len(x), -1), iter(batch_stats), []
    for index, layer in enumerate(layers):
        x = x @ layer["kernel"]
        if norm and "norm" in layer:
            x, stats = norm.apply(x, layer["norm"], next(remaining), **options)
            updated.append(stats)
        else:
            x = x + layer["bias"]
        if index < len(layers) - 1:
            x = activation(x)
    return x, updated
