"""What the tests of the two Flax layers share: data, comparison, a norm with its own variables."""

import dataclasses

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


@dataclasses.dataclass(frozen=True)
class Gained(jbn.Norm):
    """Batch norm times the parameter `gain`, 3 at first, that counts its calls in `steps`."""

    def init(self, features, *, dtype, momentum=0.99):
        params, stats = jbn.init(features, dtype=dtype, momentum=momentum)
        return {**params, "gain": jnp.full((), 3, dtype)}, {**stats, "steps": jnp.zeros((), jnp.int32)}

    def apply(self, x, params, batch_stats, *, train, offset=0.0, **options):
        affine = {name: params[name] for name in ("scale", "bias")}
        stats = {name: batch_stats[name] for name in ("mean", "var")}
        y, stats = jbn.batch_norm(x, affine, stats, train=train, **options)
        return y * params["gain"] + offset, {**stats, "steps": batch_stats["steps"] + 1}


gained = Gained()

KEYWORDS = {
    "axis": 1,
    "momentum": 0.5,
    "epsilon": 0.1,
    "axis_name": "a",
    "axis_index_groups": ((0,),),
    "running_variance": "unbiased",
    "dtype": BF16,
}


@dataclasses.dataclass(frozen=True)
class Recorder(jbn.Norm):
    """Returns x, and keeps the keywords it is called with in `seen`."""

    seen: dict = dataclasses.field(default_factory=dict, hash=False)

    def apply(self, x, params, batch_stats, **options):
        self.seen.update(options)
        return x, batch_stats


def recorder():
    norm = Recorder()
    return norm, norm.seen
