"""Domains mixed in a batch: what is summed by domain, and how exactly."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jbn
from jbn.variants.per_example import PerExample

RNG = np.random.default_rng(0)
MEANS, DEVIATIONS = np.array([0.0, 1e4, 1e3]), np.array([1.0, 3.0, 1e-2])


def data(shape):
    domain = RNG.integers(0, 3, shape[0])
    wide = [-1] + [1] * (len(shape) - 1)
    x = MEANS[domain].reshape(wide) + DEVIATIONS[domain].reshape(wide) * RNG.standard_normal(shape)
    return jnp.asarray(x, jnp.float32), jnp.asarray(domain)


def train(x, domain, **kwargs):
    _, stats = jbn.domains(3).init(x.shape[-1])
    apply = jax.jit(functools.partial(PerExample(3).apply, train=True, momentum=0.0, **kwargs))
    return apply(x, {}, stats, domain=domain)


@pytest.mark.parametrize("shape", [(2000, 3), (40, 5, 3)], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_each_domain_is_normalized_as_exactly_as_a_batch_of_its_own(shape, masked):
    x, domain = data(shape)
    mask = RNG.random((*shape[:-1], 1)) < 0.7 if masked else None
    y, stats = train(x, domain, mask=mask)
    for k in range(3):
        own = np.asarray(domain) == k
        wide, axes = np.asarray(x, np.float64)[own], tuple(range(len(shape) - 1))
        where = np.broadcast_to(True if mask is None else mask[own], wide.shape)
        mean, var = wide.mean(axes, where=where), wide.var(axes, where=where)
        exact = (wide - mean) / np.sqrt(var + 1e-5)
        np.testing.assert_array_less(np.abs(y[own] - exact), 1e-6 * np.maximum(1, np.abs(exact)))
        np.testing.assert_allclose(stats["var"][k], var, rtol=2e-6)


def test_a_value_repeated_in_a_domain_is_normalized_to_exactly_0():
    domain = jnp.array([0, 1, 0, 1, 1, 0, 2])
    x = jnp.asarray(np.array([0.1, 1234.567, -3e5])[domain][:, None] * np.ones((7, 2)), jnp.float32)
    np.testing.assert_array_equal(train(x, domain)[0], 0)


def test_what_is_not_finite_stays_in_its_domain():
    x, domain = data((8, 3))
    clean, expected = train(x, domain)
    bad = int(domain[0])
    y, stats = train(x.at[0, 1].set(jnp.nan), domain)
    others = np.asarray(domain) != bad
    np.testing.assert_array_equal(y[others], clean[others])
    assert np.isnan(y[~others][:, 1]).all()
    assert stats["mean"][bad, 1] == 0
    np.testing.assert_array_equal(stats["mean"][:, 0], expected["mean"][:, 0])


@pytest.mark.parametrize(("axis", "order"), [((0, 2), (1, 0, 2)), ((2, 1), (0, 1, 2))], ids=str)
def test_several_feature_axes_before_and_after_the_examples(axis, order):
    x, domain = data((6, 3, 4))
    stats = jbn.domains(3).init((3, 4))[1]
    y, new = PerExample(3).apply(
        x.transpose(order), {}, stats, train=True, domain=domain, axis=axis, momentum=0.0
    )
    flat, expected = train(x.reshape(6, 12), domain)
    np.testing.assert_allclose(y.transpose(order).reshape(6, 12), flat, rtol=1e-6, atol=1e-6)
    for name, value in expected.items():
        np.testing.assert_allclose(new[name].reshape(3, 12), value, rtol=1e-6)


def test_an_empty_batch_changes_nothing():
    y, stats = train(jnp.zeros((0, 4)), jnp.zeros(0, jnp.int32))
    assert y.shape == (0, 4)
    np.testing.assert_array_equal(stats["var"], 1)


@pytest.mark.parametrize("dtype", ["int8", "int16", "uint8", "int32"])
def test_an_index_of_any_width(dtype):
    x, domain = data((200, 3))
    _, expected = train(x, domain)
    norm = jbn.domains(3)
    _, stats = norm.apply(x, {}, norm.init(3)[1], train=True, momentum=0.0, domain=domain.astype(dtype))
    np.testing.assert_array_equal(stats["mean"], expected["mean"])


@pytest.mark.parametrize("mode", [True, False], ids=["training", "inference"])
def test_padding_with_an_index_of_no_domain_poisons_no_gradient(mode):
    norm = jbn.domains(2)
    params, stats = norm.init(3)
    x = jnp.asarray(RNG.standard_normal((6, 3)), jnp.float32)
    mask = jnp.array([1, 1, 1, 1, 0, 0], bool)[:, None]

    def loss(params, x, domain):
        y, _ = norm.apply(x, params, stats, train=mode, domain=domain, mask=mask)
        return jnp.sum(jnp.where(mask, y, 0) ** 2)

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))
    actual = gradient(params, x, jnp.array([0, 1, 1, 0, -1, 7]))
    expected = gradient(params, x, jnp.array([0, 1, 1, 0, 0, 1]))
    jax.tree.map(np.testing.assert_array_equal, actual, expected)
