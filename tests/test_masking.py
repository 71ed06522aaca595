"""What is masked may be anything; what is not masked is seen."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jbn
import reference
from jbn import _masking
from jbn.ops.reduction import Reduction
from tolerance import tolerance

RNG = np.random.default_rng(0)
X = RNG.standard_normal((40, 3)).astype(np.float32)
DY = RNG.standard_normal((40, 3)).astype(np.float32)
MASK = (np.arange(40) % 4 > 0)[:, None]
PARAMS = {"scale": jnp.array([1.0, -2.0, 0.5]), "bias": jnp.array([0.3, 0.0, -1.0])}
BATCH_STATS = jbn.init(3)[1]
PADDING = {
    "nan": np.nan,
    "inf": np.inf,
    "largest": np.finfo(np.float32).max,
    "1e38": -1e38,
    "1e19": 1e19,
}


@jax.jit
def gradients(x, mask, dy):
    def output(x, params, weights):
        return jbn.batch_norm(x, params, BATCH_STATS, train=True, mask=weights)[0]

    return jax.vjp(output, x, PARAMS, mask)[1](dy)


@jax.jit
def analytic(x, mask, dy):
    return jbn.batch_norm_backward(dy, x, PARAMS, jbn.moments(x, mask=mask), mask=mask)


def close(actual, expected, factor=1.0):
    bound = {name: factor * value for name, value in tolerance("float32", 40).items()}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **bound), actual, expected)


@pytest.mark.parametrize("padding", PADDING)
def test_padding_reaches_no_gradient(padding):
    weights = np.where(MASK, 1.5, 0).astype(np.float32)
    x = np.where(MASK, X, PADDING[padding]).astype(np.float32)
    dy = np.where(MASK, DY, 0)
    dx, dparams, dweights = gradients(x, weights, dy)
    expected = reference.backward(dy, X, PARAMS, mask=weights)
    close((dx, dparams), expected)
    close(analytic(x, weights, dy), expected)
    assert np.isfinite(dweights[MASK]).all()


@pytest.mark.parametrize("gradient", [gradients, analytic])
def test_padding_with_a_cotangent_of_its_own_that_is_larger_than_the_others(gradient):
    weights = np.where(MASK, 1.5, 0).astype(np.float32)
    x, dy = np.where(MASK, X, 7), np.where(MASK, DY, 1e4 * DY)
    dx, dparams, *_ = gradient(x, weights, dy)
    close((dx, dparams), reference.backward(dy, x, PARAMS, mask=weights), factor=1e4)


@pytest.mark.parametrize("mean", [0, 1e5])
def test_gradient_of_the_weights(mean):
    """Of the output, of the moments and of the count, far from zero too."""
    x = (mean + RNG.standard_normal((40, 3))).astype(np.float32)
    weights = RNG.uniform(0.5, 2, (40, 1)).astype(np.float32)

    def outputs(weights):
        m = jbn.moments(x, mask=weights)
        return jbn.normalize(x, m, PARAMS), m.mean, m.var, m.count

    _, vjp = jax.vjp(outputs, weights)
    cotangents = DY, DY[0], DY[1], DY[2]
    m, var, n = reference.moments(x, mask=weights)
    a = np.float64(PARAMS["scale"]) / np.sqrt(var + 1e-5)
    d = np.float64(x) - m
    dvar = DY[1] + (-0.5 * a * DY * d).sum(0) / (var + 1e-5)
    dmean = DY[0] - (a * DY).sum(0)
    expected = (dmean * d / n + dvar * (d**2 - var) / n + DY[2]).sum(1, keepdims=True)
    close(vjp(cotangents)[0], expected, factor=4)


def test_gradient_of_the_weights_of_complex_values():
    weights = np.where(MASK, 1.5, 0.5).astype(np.float32)

    def variance(weights, x):
        return jnp.sum(jbn.moments(x, mask=weights).var)

    # The variance is that of the two parts together.
    apart = sum(jax.grad(variance)(weights, x) for x in (X, DY))
    close(jax.grad(variance)(weights, jax.lax.complex(X, DY)), apart)


@pytest.mark.parametrize("train", [True, False])
def test_a_sample_that_counts_and_is_no_number_shows_in_the_gradients(train):
    x = X.copy()
    x[5, 1] = np.nan

    def loss(params):
        y, _ = jbn.batch_norm(x, params, BATCH_STATS, train=train, mask=MASK)
        return jnp.sum(y * DY)

    gradient = jax.grad(loss)(PARAMS)["scale"]
    assert np.isnan(gradient[1])
    assert np.isfinite(gradient[jnp.array([0, 2])]).all()


def test_a_boolean_mask_counts_exactly_and_stays_one():
    weights = _masking.as_weights(MASK, jnp.asarray(X))
    assert weights.dtype == bool
    reduction = Reduction((0,))
    assert _masking.count(reduction, weights, X.shape).dtype == jnp.int32
    np.testing.assert_array_equal(_masking.count(reduction, weights, X.shape), [30, 30, 30])


def test_what_is_masked_is_zero_in_a_sum_and_itself_outside_unless_it_poisons():
    v = jnp.array([1.0, 2.0, 1e30, jnp.nan])
    weights = jnp.array([3.0, 0.0, 0.0, 0.0])
    np.testing.assert_array_equal(_masking.weighted(weights, v), [3, 0, 0, 0])
    np.testing.assert_array_equal(_masking.counted(weights, v), [1, 0, 0, 0])
    np.testing.assert_array_equal(_masking.harmless(weights, v), [1, 2, 0, 0])


def test_gradients_of_a_mask_of_ones_are_those_without():
    ones = np.ones((40, 1), np.float32)
    with_mask = gradients(X, ones, DY)[:2]
    run = functools.partial(jbn.batch_norm, batch_stats=BATCH_STATS, train=True)
    without = jax.vjp(lambda x, p: run(x, p)[0], X, PARAMS)[1](DY)
    close(with_mask, without)
