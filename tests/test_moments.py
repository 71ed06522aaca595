"""`jbn.moments`: the oracle, masks, shifts, and tangents of x and of the weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jbn
import reference
from cases import CASES, DTYPES, NAMES
from tolerance import tolerance


@pytest.mark.parametrize("case", CASES + DTYPES, ids=lambda case: case.name)
def test_matches_the_oracle(case):
    x, _, _, kwargs = case.make()
    mask = kwargs.get("mask")
    m = jbn.moments(x, axis=case.axis, mask=mask)
    expected = reference.moments(x, case.axis, mask)
    for actual, value in zip((m.mean, m.var, m.count), expected, strict=True):
        assert actual.shape == case.features
        np.testing.assert_allclose(actual, value, **tolerance("float32", case.reduced))
    assert m.var.dtype == m.count.dtype == jnp.float32


def test_the_remainder_is_what_rounding_the_mean_left_out():
    x = (1e5 + np.random.default_rng(0).standard_normal((1000, 8))).astype(np.float32)
    m = jbn.moments(x)
    mean, _, _ = reference.moments(x)
    assert np.max(np.abs(np.asarray(m.mean, np.float64) - mean)) > 1e-4
    assert np.max(np.abs(np.asarray(m.mean, np.float64) + np.asarray(m.remainder) - mean)) < 1e-7


def test_half_precision_does_not_overflow():
    x = jnp.asarray(np.random.default_rng(0).choice([-6e4, 6e4], (512, 3))).astype(jnp.float16)
    m = jbn.moments(x)
    mean, var, _ = reference.moments(x)
    np.testing.assert_allclose(m.var, var, rtol=1e-6)
    np.testing.assert_allclose(m.mean, mean, rtol=1e-4)


def test_gradients_flow_to_x_and_to_float_weights():
    x, _, _, kwargs = NAMES["two_feature_axes"].make()

    def moments(x, weights):
        m = jbn.moments(x, axis=(1, 2), mask=weights)
        return m.mean, m.var, m.count

    def plain(x, weights):
        n = jnp.sum(weights, 0)
        mean = jnp.sum(weights * x, 0) / n
        var = jnp.sum(weights * (x - mean[None]) ** 2, 0) / n
        return mean, var, jnp.broadcast_to(n, mean.shape)

    for mode in (jax.jacfwd, jax.jacrev):
        actual = jax.jit(mode(moments, (0, 1)))(x, kwargs["mask"])
        expected = jax.jit(mode(plain, (0, 1)))(x, kwargs["mask"])
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, **tolerance("float32", 5)), actual, expected
        )


def test_gradient_of_the_weights_alone():
    x, _, _, kwargs = NAMES["two_feature_axes"].make()
    actual = jax.grad(lambda w: jnp.sum(jbn.moments(x, axis=(1, 2), mask=w).var))(kwargs["mask"])
    w = np.asarray(kwargs["mask"], np.float64)
    mean, var, n = reference.moments(x, (1, 2), w)
    expected = (((np.asarray(x) - mean) ** 2 - var) / n).sum((1, 2), keepdims=True)
    np.testing.assert_allclose(actual, expected, **tolerance("float32", 60))
