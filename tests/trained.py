"""Variables as training leaves them, and what folding a model is to keep."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def trained(variables, seed=0):
    """A tree of such shapes and dtypes; all is random, no scale near zero, some of them negative."""
    rng = np.random.default_rng(seed)

    def value(path, v):
        name = jax.tree_util.keystr(path)
        if "kernel" in name:
            return jnp.asarray(rng.normal(size=v.shape) / math.sqrt(math.prod(v.shape[:-1])), v.dtype)
        if "mean" in name or "bias" in name:
            return jnp.asarray(rng.normal(size=v.shape), v.dtype)
        sign = rng.choice([-1, 1], v.shape) if "scale" in name else 1
        return jnp.asarray(rng.uniform(0.5, 2, size=v.shape) * sign, v.dtype)

    return jax.tree_util.tree_map_with_path(value, variables)


def trained_linen(model, x, seed=0, **kwargs):
    """Variables of a Linen model."""
    init = functools.partial(model.init, **kwargs)
    return trained(jax.eval_shape(init, jax.eval_shape(lambda: jax.random.key(0)), x), seed)


def trained_nnx(build, seed=0):
    """The model that a function of random keys makes, in evaluation mode; nothing is initialized."""
    structure, state = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))
    model = nnx.merge(structure, trained(state, seed))
    model.eval()
    return model


def agree(actual, expected, rtol=1e-5):
    """To `rtol` of the largest, and in the same dtype."""
    assert actual.dtype == expected.dtype
    size = np.abs(expected).max()
    np.testing.assert_allclose(actual / size, expected / size, rtol=0, atol=rtol)
