"""`jbn.normalize`: given statistics, every cotangent, and what is kept for the backward pass."""

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
    x, params, batch_stats, _ = case.make()
    moments = jbn.Moments(batch_stats["mean"], batch_stats["var"])
    y = jbn.normalize(x, moments, params, axis=case.axis, epsilon=case.epsilon)
    expected = reference.normalize(
        x, batch_stats["mean"], batch_stats["var"], params, case.axis, case.epsilon
    )
    assert y.dtype == (x.dtype if jnp.issubdtype(x.dtype, jnp.inexact) else jnp.float32)
    np.testing.assert_allclose(np.asarray(y, np.complex128), expected, **tolerance(y.dtype))


def test_gradients_reach_the_statistics_and_the_parameters():
    x, params, batch_stats, _ = NAMES["nhwc"].make()
    mean, var = batch_stats["mean"], batch_stats["var"]

    def plain(x, mean, var, params):
        return (x - mean[None, None, None]) / jnp.sqrt(var + 1e-5)[None, None, None] * params["scale"][
            None, None, None
        ] + params["bias"][None, None, None]

    def ours(x, mean, var, params):
        return jbn.normalize(x, jbn.Moments(mean, var), params)

    _, vjp = jax.vjp(ours, x, mean, var, params)
    _, expected = jax.vjp(plain, x, mean, var, params)
    ct = NAMES["nhwc"].cotangent()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **tolerance("float32", 18)), vjp(ct), expected(ct)
    )


def test_composition_with_moments_is_batch_norm():
    case = NAMES["sequence"]
    x, params, batch_stats, kwargs = case.make()
    mask = kwargs["mask"]
    composed = jbn.normalize(x, jbn.moments(x, mask=mask), params, mask=mask)
    expected, _ = jbn.batch_norm(x, params, batch_stats, train=True, mask=mask)
    np.testing.assert_allclose(composed, expected, **tolerance("float32", 15))


def test_without_params_and_with_moments_as_numpy():
    x = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    y = jbn.normalize(x, jbn.Moments(np.zeros(3, np.float32), np.ones(3, np.float32)))
    np.testing.assert_allclose(y, x / np.sqrt(1 + 1e-5), **tolerance("float32"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("train", [True, False])
def test_the_one_large_residual_is_x_in_its_own_dtype(dtype, train):
    params, batch_stats = jbn.init(4)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((64, 4))).astype(dtype)
    _, vjp = jax.vjp(lambda x, p: jbn.batch_norm(x, p, batch_stats, train=train)[0], x, params)
    large = [leaf for leaf in jax.tree.leaves(vjp) if leaf.size >= x.size]
    assert [(leaf.shape, leaf.dtype) for leaf in large] == [(x.shape, x.dtype)]


def test_no_large_residual_where_nothing_needs_it():
    params, batch_stats = jbn.init(4)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((64, 4)), jnp.float32)
    _, vjp = jax.vjp(
        lambda b: jbn.batch_norm(x, {"bias": b}, batch_stats, train=True)[0], params["bias"]
    )
    assert all(leaf.size < x.size for leaf in jax.tree.leaves(vjp))
    _, vjp = jax.vjp(lambda x: jbn.batch_norm(x, params, batch_stats, train=False)[0], x)
    assert all(leaf.size < x.size for leaf in jax.tree.leaves(vjp))
