"""`jbn.weighted_inference`: what inference sees of the example; see test_variants.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jbn
import variant_reference

RNG = np.random.default_rng(0)
X = jnp.asarray(1 + 2 * RNG.standard_normal((6, 3, 4)), jnp.float32)
PARAMS = {"scale": jnp.array([0.5, 2.0, -1.0, 1.0]), "bias": jnp.arange(4.0)}
STATS = {"mean": jnp.array([0.0, 1.0, 2.0, -3.0]), "var": jnp.array([0.5, 1.0, 4.0, 8.0])}
MASK = jnp.asarray(RNG.random((6, 3, 1)) < 0.6).at[2].set(False)
close = functools.partial(jax.tree.map, lambda a, b: np.testing.assert_allclose(a, b, 2e-5, 2e-5))


def infer(norm, x=X, params=PARAMS, stats=STATS, **kwargs):
    return norm.apply(x, params, stats, train=False, **kwargs)[0]


def expected(alpha, x=X, **kwargs):
    x, params, stats = jax.tree.map(lambda v: np.asarray(v, np.float64), (x, PARAMS, STATS))
    return variant_reference.weighted_inference(x, params, stats, alpha=alpha, train=False, **kwargs)[0]


@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "masked"])
def test_an_alpha_of_the_call_may_be_traced(mask):
    norm = jbn.weighted_inference(0.1)
    traced = jax.jit(lambda alpha: infer(norm, alpha=alpha, mask=mask))
    for alpha in (0.0, 0.3, 1.0):
        close(traced(alpha), expected(alpha, mask=mask))
    close(infer(norm, mask=mask), expected(0.1, mask=mask))


def test_alpha_0_is_inference_as_it_was():
    plain = jbn.batch_norm(X, PARAMS, STATS, train=False)[0]
    np.testing.assert_array_equal(infer(jbn.weighted_inference(0.0)), plain)
    np.testing.assert_array_equal(infer(jbn.weighted_inference(0.5), alpha=jnp.asarray(0.0)), plain)


def test_alpha_1_normalizes_each_example_by_itself():
    y = infer(jbn.weighted_inference(1.0), params={})
    np.testing.assert_allclose(y.mean(1), 0, atol=1e-6)
    np.testing.assert_allclose(y.var(1), 1, rtol=1e-3)


def test_examples_without_positions_are_their_own_mean():
    close(infer(jbn.weighted_inference(0.3), X[:, 0]), expected(0.3, X[:, 0]))


def test_derivatives_of_inference():
    def plain(x, params):
        own, own_var = x.mean(1, keepdims=True), x.var(1, keepdims=True)
        stored, stored_var = STATS["mean"][None, None], STATS["var"][None, None]
        mean = 0.3 * own + 0.7 * stored
        var = 0.3 * own_var + 0.7 * stored_var + 0.21 * (own - stored) ** 2
        z = (x - mean) / jnp.sqrt(var + 1e-5)
        return z * params["scale"][None, None] + params["bias"][None, None]

    def of(function):
        gradient = jax.grad(lambda x, p: jnp.sum(jnp.sin(function(x, p)) * jnp.cos(X)), (0, 1))
        along = jnp.cos(X), jax.tree.map(jnp.sin, PARAMS)
        return jax.jit(lambda: jax.jvp(gradient, (X, PARAMS), along))()

    norm = jbn.weighted_inference(0.3)
    close(of(lambda x, p: infer(norm, x, p)), of(plain))


def test_half_precision_of_inference():
    norm, x = jbn.weighted_inference(0.3), X.astype(jnp.bfloat16)
    y = infer(norm, x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, infer(norm, x.astype(jnp.float32)).astype(jnp.bfloat16))


def test_with_the_training_of_others():
    for inner in (jbn.ghost(groups=3), jbn.renorm()):
        norm = jbn.weighted_inference(0.3, inner)
        trained = inner.apply(X, PARAMS, STATS, train=True)
        jax.tree.map(np.testing.assert_array_equal, norm.apply(X, PARAMS, STATS, train=True), trained)
        close(infer(norm), expected(0.3))
    scale = jnp.asarray(RNG.uniform(0.5, 2, (6, 4)), jnp.float32)
    conditional = jbn.conditional(jbn.weighted_inference(0.3))
    y = infer(conditional, params={}, scale=scale)
    close(y, infer(jbn.weighted_inference(0.3), params={}) * scale[:, None])


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"alpha": 1.5}, r"`alpha` must lie in \[0, 1\]"),
        (
            {"alpha": 0.5, "norm": jbn.domains(2)},
            r"`norm` of jbn\.weighted_inference must be one whose",
        ),
        ({"alpha": 0.5, "norm": jbn.inplace()}, r"`norm` of jbn\.weighted_inference must be one whose"),
    ],
    ids=str,
)
def test_wrong_arguments(keywords, message):
    with pytest.raises(ValueError, match=message):
        jbn.weighted_inference(**keywords)


def test_alpha_1_is_exact_whatever_the_mean():
    x = jnp.asarray(1e5 + RNG.standard_normal((4, 200, 3)), jnp.float32)
    norm = jbn.weighted_inference(1.0)
    y = norm.apply(x, *norm.init(3), train=False)[0]
    wide = np.asarray(x, np.float64)
    exact = (wide - wide.mean(1, keepdims=True)) / np.sqrt(wide.var(1, keepdims=True) + 1e-5)
    np.testing.assert_array_less(np.abs(y - exact), 1e-6 * np.maximum(1, np.abs(exact)))


@pytest.mark.parametrize("alpha", [-0.1, 2, jnp.asarray(2.0)], ids=str)
def test_an_alpha_of_the_call_is_checked(alpha):
    with pytest.raises(ValueError, match=r"`alpha` must lie in \[0, 1\]"):
        infer(jbn.weighted_inference(0.3), alpha=alpha)


def test_keywords_of_the_norm_in_either_mode():
    norm = jbn.weighted_inference(0.3, jbn.renorm())
    y = norm.apply(X, PARAMS, STATS, train=False, r_max=2.0)[0]
    close(y, infer(jbn.weighted_inference(0.3)))
    traced = jax.jit(lambda train: norm.apply(X, PARAMS, STATS, train=train, r_max=2.0)[0])
    close(traced(False), y)
