"""The network of figure 1 of Ioffe and Szegedy (2015), as functions: `jbn.init` and `jbn.batch_norm`.

Three hidden layers of 100 sigmoid units and a linear layer, with batch norm before each sigmoid or
without. The weights begin as "small random Gaussian values", whose deviation the paper does not name.
"""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import jbn

HIDDEN, LAYERS, CLASSES = 100, 3, 10
DEVIATION = 0.1


class State(NamedTuple):
    """Parameters, and a dict of statistics for each hidden layer: none without batch norm."""

    params: Any
    batch_stats: list[dict[str, jax.Array]]


def create_state(key: jax.Array, inputs: int, batch_norm: bool) -> State:
    """Gaussian kernels, biases 0, and what batch norm begins with."""
    sizes = (inputs, *LAYERS * (HIDDEN,), CLASSES)
    shapes = list(itertools.pairwise(sizes))
    keys = jax.random.split(key, len(shapes))
    layers: list[dict[str, Any]] = [
        {"kernel": DEVIATION * jax.random.normal(k, shape), "bias": jnp.zeros((1, shape[1]))}
        for k, shape in zip(keys, shapes, strict=True)
    ]
    batch_stats = []
    for layer in layers[:-1] if batch_norm else ():
        layer["norm"], stats = jbn.init(HIDDEN)
        batch_stats.append(stats)
    return State(layers, batch_stats)


def mlp(state: State, images: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array, list]:
    """Images (N, H, W, 1) to logits (N, 10), the last sigmoids' input (N, 100), new statistics."""
    x = images.reshape(len(images), -1)
    before, batch_stats = x, []
    *hidden, output = state.params
    for index, layer in enumerate(hidden):
        before = x @ layer["kernel"] + layer["bias"]
        if "norm" in layer:
            stats = state.batch_stats[index]
            before, stats = jbn.batch_norm(before, layer["norm"], stats, train=train, momentum=0.9)
            batch_stats.append(stats)
        x = jax.nn.sigmoid(before)
    return x @ output["kernel"] + output["bias"], before, batch_stats
