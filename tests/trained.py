"""Variables and models as if they had been trained: random statistics, scales and biases."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def trained(variables, seed=0):
    """The same tree; of the norms' values none is that of the initialization, nor zero."""
    rng = np.random.default_rng(seed)

    def value(path, v):
        name = jax.tree_util.keystr(path)
        if "mean" in name or "bias" in name:
            return jnp.asarray(rng.normal(size=v.shape), v.dtype)
        if "var" in name or "scale" in name:
            return jnp.asarray(rng.uniform(0.5, 2, size=v.shape) * rng.choice([-1, 1]), v.dtype)
        return v

    tree = jax.tree_util.tree_map_with_path(value, variables)
    return jax.tree_util.tree_map_with_path(
        lambda path, v: jnp.abs(v) if "var" in jax.tree_util.keystr(path) else v, tree
    )


def trained_nnx(model, seed=0):
    """The model itself, with such values in it."""
    nnx.update(model, trained(nnx.state(model, (nnx.Param, nnx.BatchStat)), seed))
    return model
