"""`Reduction`: sums, and their transposes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jbn.ops.reduction import Reduction

LAYOUTS = {(6, 4): (0,), (2, 3, 4): (0, 2), (5,): (), (512, 3): (0,), (2048, 2): (0,), (509, 2): (0,)}


def data(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


@pytest.mark.parametrize("shape", LAYOUTS, ids=str)
def test_sums(shape, platform):
    del platform
    reduction, v = Reduction(LAYOUTS[shape]), data(shape)
    total = np.asarray(v, np.float64).sum(reduction.axes)
    assert reduction.features(shape) == total.shape
    assert reduction.samples(shape) * total.size == v.size
    np.testing.assert_allclose(reduction.sum(v), total, atol=1e-4)
    np.testing.assert_allclose(reduction.compensated_sums(v)[0], total, rtol=2e-7, atol=1e-12)


@pytest.mark.parametrize("shape", LAYOUTS, ids=str)
def test_spread_transposes_into_sum(shape, platform):
    del platform
    reduction, v = Reduction(LAYOUTS[shape]), data(shape)
    s = data(reduction.features(shape), seed=1)
    spread, transpose = jax.vjp(lambda s: reduction.spread(reduction.expand(s), v), s)
    np.testing.assert_array_equal(spread, reduction.broadcast(s, shape))
    np.testing.assert_allclose(transpose(v)[0], reduction.sum(v), rtol=1e-6)


def test_a_compensated_sum_forgets_nothing():
    v = jnp.asarray([1e8, 1.0, -1e8, 1e-8] * 500, jnp.float32)
    assert Reduction((0,)).compensated_sums(v)[0] == np.float32(np.asarray(v, np.float64).sum())
    complex_values = jax.lax.complex(v[::2], v[1::2])
    expected = np.asarray(complex_values, np.complex128).sum()
    assert Reduction((0,)).compensated_sums(complex_values)[0] == np.complex64(expected)


def test_a_reduction_is_static_in_a_program():
    traces = []

    @jax.jit
    def total(reduction, v):
        traces.append(reduction)
        return reduction.sum(v)

    for _ in range(2):
        total(Reduction((0,)), data((6, 4)))
    total(Reduction((1,)), data((6, 4)))
    assert len(traces) == 2
