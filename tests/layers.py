"""What the tests of the two Flax layers share: data, comparison, a norm with its own variables."""

import jax
import jax.numpy as jnp
import numpy as np

import jbn
from tolerance import tolerance

BF16 = jnp.bfloat16
SHAPE = (6, 5, 4)
MASK = np.random.default_rng(3).random((6, 5, 1)) < 0.6
SPEC = jax.ShapeDtypeStruct(SHAPE, jnp.float32)


def data(shape=SHAPE, dtype=jnp.float32, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(1, 2, shape)
    return jnp.asarray(x + 1j * rng.normal(-1, 1, shape) if dtype == jnp.complex64 else x, dtype)


def randomized(tree):
    """The same tree with values that no initializer gives; variances stay positive."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda v: jnp.asarray(rng.uniform(0.5, 1.5, v.shape), v.dtype), tree)


def weighted(y):
    """A scalar of y whose cotangent is random."""
    weight = jnp.asarray(np.random.default_rng(2).normal(size=y.shape), y.real.dtype)
    return jnp.sum(weight * (y.real + 2 * y.imag), dtype=jnp.float32)


def specs(tree):
    return jax.tree.map(lambda v: (v.shape, v.dtype.name), tree)


def equal(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def close(actual, expected, dtype=None):
    """Same tree, shapes and dtypes; values within the tolerance of `dtype`, by default their own."""
    assert specs(actual) == specs(expected)

    def check(a, b):
        bound = tolerance(dtype or a.dtype, reduced=30)
        a, b = np.asarray(a, np.complex128), np.asarray(b, np.complex128)
        bound["atol"] *= max(1, np.max(np.abs(b), initial=0))
        np.testing.assert_allclose(a, b, **bound)

    jax.tree.map(check, actual, expected)


def _init(features, *, dtype, momentum=0.99):
    params, stats = jbn.init(features, dtype=dtype, momentum=momentum)
    return {**params, "gain": jnp.full((), 3, dtype)}, {**stats, "steps": jnp.zeros((), jnp.int32)}


def _apply(x, params, batch_stats, **kwargs):
    affine = {name: params[name] for name in ("scale", "bias")}
    stats = {name: batch_stats[name] for name in ("mean", "var")}
    y, stats = jbn.batch_norm(x, affine, stats, **kwargs)
    return y * params["gain"], {**stats, "steps": batch_stats["steps"] + 1}


gained = jbn.Norm(_init, _apply)
"""Batch norm times the parameter `gain`, 3 at first, that counts its calls in the statistic `steps`."""

KEYWORDS = {
    "axis": 1,
    "momentum": 0.5,
    "epsilon": 0.1,
    "axis_name": "a",
    "axis_index_groups": ((0,),),
    "running_variance": "unbiased",
    "dtype": BF16,
}


def recorder():
    """A norm that returns x, and the keywords it is called with."""
    seen = {}

    def apply(x, params, batch_stats, **kwargs):
        seen.update(kwargs)
        return x, batch_stats

    return jbn.Norm(jbn.init, apply), seen
