"""Populations taken together have the moments of all their values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jbn
from jbn.variants.mixture import mixed, pooled
from tolerance import tolerance


def total(*values):
    return [jnp.sum(v, 0) for v in values]


def back(s):
    return s[None]


@pytest.mark.parametrize("mean", [0.0, 1e5])
def test_pooled_moments_are_those_of_the_union(mean):
    rng = np.random.default_rng(0)
    x = jnp.asarray(
        mean + rng.standard_normal((5, 20, 3)) + rng.standard_normal((5, 1, 3)), jnp.float32
    )
    mask = jnp.asarray(rng.random((5, 20, 1)) < 0.5).at[2].set(False)
    m = jax.jit(lambda x: pooled(jbn.moments(x, axis=(0, 2), mask=mask), total, back))(x)
    wide, keep = np.asarray(x, np.float64), np.asarray(mask)[..., 0]
    np.testing.assert_allclose(
        np.float64(m.mean) + np.float64(m.remainder), wide[keep].mean(0), rtol=1e-9, atol=1e-6
    )
    np.testing.assert_allclose(m.var, wide[keep].var(0), **tolerance("float32", 50))
    np.testing.assert_array_equal(m.count, [keep.sum()] * 3)


def test_a_value_repeated_everywhere_has_itself_as_mean_and_no_variance():
    x = jnp.full((7, 3, 1), 1234.567)
    m = pooled(jbn.moments(x, axis=(0, 2)), total, back)
    np.testing.assert_array_equal([m.mean, m.var, m.remainder], [x[0, 0], [0], [0]])


def test_derivatives_of_pooled_moments():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 4, 2)), jnp.float32)

    def ours(x):
        m = pooled(jbn.moments(x, axis=(0, 2)), total, back)
        return jnp.sum(jnp.sin(m.mean) * m.var)

    def plain(x):
        mean = jnp.mean(x, (0, 1), keepdims=True)
        return jnp.sum(jnp.sin(mean[0, 0]) * jnp.mean((x - mean) ** 2, (0, 1)))

    for derivative in (jax.grad, jax.hessian):
        actual, expected = (jax.jit(derivative(f))(x) for f in (ours, plain))
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mean", [0.0, 1e5])
def test_mixed_moments_are_those_of_both_in_proportion(mean):
    rng = np.random.default_rng(0)
    one = jnp.asarray(mean + rng.standard_normal((30, 2)), jnp.float32)
    other = jnp.asarray(mean + 3 + 2 * rng.standard_normal((10, 2)), jnp.float32)
    m = mixed(jbn.moments(one), jbn.moments(other), 0.25)
    both = np.concatenate([one, other]).astype(np.float64)
    exact_mean = np.float64(m.mean) + np.float64(m.remainder)
    np.testing.assert_allclose(exact_mean, both.mean(0), rtol=1e-9, atol=1e-6)
    np.testing.assert_allclose(m.var, both.var(0), **tolerance("float32", 40))


def test_mixed_with_weight_0_is_to_the_last_digit_what_it_was():
    x = 1e4 + jnp.cos(jnp.arange(12.0)).reshape(6, 2)
    m = jbn.moments(x)
    jax.tree.map(np.testing.assert_array_equal, mixed(m, jbn.moments(-2 * x), 0.0), m)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_at_either_end_mixed_moments_are_those_of_one_population(weight):
    rng = np.random.default_rng(0)
    a, b = (
        jbn.moments(jnp.asarray(mean + rng.standard_normal((50, 3)), jnp.float32)) for mean in (0, 1e5)
    )
    of = b if weight else a
    got = mixed(a, b, weight)
    for name in ("mean", "remainder", "var"):
        np.testing.assert_array_equal(getattr(got, name), getattr(of, name))
