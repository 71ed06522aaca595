"""Both ways to the moments, that for CPUs and that for the rest, on data laid out to hurt."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import reference
from jbn.ops import xla

N, C = 4096, 3
rng = np.random.default_rng(0)
normal = rng.standard_normal((N, C))

LAYOUTS = {
    "sorted": np.sort(normal, 0) + 100,
    "one outlier": np.where(np.arange(N)[:, None] == 77, 1e6, normal),
    "first row unlike the rest": np.where(np.arange(N)[:, None] == 0, 1e4, 5 + 1e-2 * normal),
    "first half unlike the rest": np.where(np.arange(N)[:, None] < N // 2, -1e3, 1e3) + normal,
    "alternating signs": np.where(np.arange(N)[:, None] % 2, 1e3, -1e3) + normal,
    "far from zero": 1e5 + normal,
    "steps of the last bit": 2.0**23 + np.round(4 * normal),
    "large": 1e15 * (10 + normal),
    "small": 1e-15 * (10 + normal),
    "constant": np.full((N, C), 1.234567e7),
    "one value": np.full((1, C), 1.234567e-3),
    "two values": 1e4 + normal[:2],
}


by_way = pytest.mark.parametrize(
    "way", [xla._one_pass_if_well_conditioned, xla._two_passes], ids=["cpu", "other"]
)


@functools.partial(jax.jit, static_argnums=0)
def run(way, x):
    return way(x, None, jnp.full(x.shape[1:], x.shape[0], x.dtype), axes=(0,))


@pytest.mark.parametrize("layout", LAYOUTS)
@by_way
def test_matches_the_oracle(layout, way):
    x = jnp.asarray(LAYOUTS[layout], jnp.float32)
    mean, var, _ = reference.moments(x)
    deviation = np.sqrt(var) + 1e-30
    actual, remainder, variance = run(way, x)
    error = np.abs(np.asarray(actual, np.float64) + np.asarray(remainder) - mean)
    assert np.max(error / deviation) < 1e-6
    np.testing.assert_allclose(variance, var, rtol=4e-6, atol=1e-30)
    if layout in ("constant", "one value"):
        np.testing.assert_array_equal(variance, 0)
        np.testing.assert_array_equal(actual, x[0])
        np.testing.assert_array_equal(remainder, 0)


@by_way
def test_weights_of_zero_count_for_nothing(way):
    x = jnp.asarray(1e5 + normal[:64], jnp.float32)
    weights = jnp.asarray(rng.random((64, 1)) < 0.5, jnp.float32)
    weights = jnp.broadcast_to(weights, x.shape).at[:, 2].set(0)
    count = jnp.sum(weights, 0)
    mean, remainder, var = way(jnp.where(weights > 0, x, 0), weights, count, axes=(0,))
    expected_mean, expected_var, _ = reference.moments(x, mask=weights)
    error = np.abs(np.asarray(mean, np.float64) + np.asarray(remainder) - expected_mean)
    assert np.max(error) < 1e-6
    np.testing.assert_allclose(var, expected_var, rtol=4e-6)
    assert mean[2] == var[2] == 0


@pytest.mark.slow
@by_way
def test_a_long_reduction(way):
    x = 1 + 1e-3 * np.random.default_rng(0).standard_normal((2**26, 1), np.float32)
    expected = np.var(x, dtype=np.float64)
    _, _, var = run(way, x)
    assert abs(var[0] / expected - 1) < 1e-4
