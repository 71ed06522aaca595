"""`jbn.renorm`: limits of every kind, what is averaged, errors; see test_variants.py."""

import functools
import math

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
close = functools.partial(jax.tree.map, lambda a, b: np.testing.assert_allclose(a, b, 2e-5, 2e-5))


def train(norm, x=X, params=PARAMS, stats=STATS, **kwargs):
    return norm.apply(x, params, stats, train=True, **{"momentum": 0.9, **kwargs})


def expected(stats=STATS, **kwargs):
    x, params, stats = jax.tree.map(lambda v: np.asarray(v, np.float64), (X, PARAMS, stats))
    return variant_reference.renorm(x, params, stats, **kwargs)


def test_limits_of_the_call_may_be_traced():
    norm = jbn.renorm()
    traced = jax.jit(lambda r, d: train(norm, r_max=r, d_max=d))
    for r_max, d_max in ((1.5, 0.5), (1.0, 2.0)):
        close(traced(r_max, d_max), expected(r_max=r_max, d_max=d_max))
    close(train(norm, r_max=1.5), expected(r_max=1.5, d_max=5.0))


def test_schedules_count_the_steps_of_training():
    limits = jbn.ioffe_warmup(begin=1, r_end=3, d_end=2)
    norm = jbn.renorm(**limits, running="variance")
    _, stats = norm.init(4)
    assert stats["steps"] == 0
    stats = {**STATS, "steps": stats["steps"]}
    wanted = {**STATS, "steps": 0}
    for _ in range(4):
        y, stats = train(norm, stats=stats)
        wanted_y, wanted = expected(wanted, **limits, running="variance")
        close((y, stats), (wanted_y, wanted))
    _, after = norm.apply(X, PARAMS, stats, train=False)
    assert (stats["steps"], after["steps"]) == (4, 4)


def test_without_limits_the_output_is_that_of_inference_with_the_gradients_of_batch_norm():
    norm = jbn.renorm(math.inf, math.inf)
    close(train(norm)[0], jbn.batch_norm(X, PARAMS, STATS, train=False)[0])
    ratio = np.sqrt((np.var(X, (0, 1)) + 1e-5) / (STATS["var"] + 1e-5))

    def gradient(apply):
        return jax.jit(jax.grad(lambda x: jnp.sum(apply(x)[0] * jnp.cos(X))))(X)

    plain = gradient(lambda x: jbn.batch_norm(x, PARAMS, STATS, train=True))
    close(gradient(lambda x: train(norm, x)), plain * ratio[None, None])


def test_a_repeated_value_has_finite_gradients():
    x = jnp.full((4, 4), 3.0)
    gradient = jax.grad(lambda x: jnp.sum(train(jbn.renorm(), x)[0] ** 2))(x)
    np.testing.assert_allclose(gradient, 0, atol=1e-3)  # of roundings over the root of epsilon


def test_parameters_of_every_shape():
    scale, bias = jnp.full((6, 1, 4), 2.0), jnp.full((1, 3, 1), 1.0)
    z, _ = train(jbn.renorm(), params={})
    close(train(jbn.renorm(), params={"scale": scale})[0], 2 * z)
    close(train(jbn.renorm(), params={"scale": scale[0, 0], "bias": bias})[0], 2 * z + 1)


def test_the_cumulative_average_of_deviations():
    _, stats = jbn.init(4, momentum=None)
    deviations = []
    for factor in (1.0, 2.0, 4.0):
        _, stats = train(jbn.renorm(), factor * X, stats=stats, momentum=None, epsilon=1e-3)
        deviations.append(np.sqrt(np.var(factor * X, (0, 1)) + 1e-3))
    np.testing.assert_allclose(stats["var"], np.mean(deviations, 0) ** 2 - 1e-3, rtol=1e-5)


def test_in_a_layer_with_a_limit_of_the_call():
    layer = jbn.linen.BatchNorm(use_running_average=False, norm=jbn.renorm(**jbn.crossq_warmup()))
    variables = layer.init(jax.random.key(0), X)
    assert set(variables["batch_stats"]) == {"mean", "var", "steps"}
    _, updated = layer.apply(variables, X, r_max=2.0, mutable=["batch_stats"])
    assert updated["batch_stats"]["steps"] == 1


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"r_max": 0.5}, "`r_max` must be a number, at least 1"),
        ({"d_max": -1.0}, "`d_max` must be a number, at least 0"),
        ({"running": "mean"}, "`running` must be one of"),
    ],
    ids=str,
)
def test_wrong_arguments(keywords, message):
    with pytest.raises(ValueError, match=message):
        jbn.renorm(**keywords)


def test_wrong_calls():
    with pytest.raises(ValueError, match=r"`running_variance` must be 'biased'.*running='variance'"):
        train(jbn.renorm(), running_variance="unbiased")
    with pytest.raises(TypeError, match="`x` must be real"):
        train(jbn.renorm(), X.astype(jnp.complex64))


def test_limits_of_the_call_and_steps_that_are_missing():
    params, stats = jbn.init(3)
    x = jnp.ones((4, 3))
    for name, value in {"r_max": 0.5, "d_max": -1.0}.items():
        with pytest.raises(ValueError, match=f"`{name}` must be a number, at least"):
            jbn.renorm().apply(x, params, stats, train=True, **{name: value})
    with pytest.raises(ValueError, match="`batch_stats` must hold 'steps' where `r_max` is a schedule"):
        jbn.renorm(**jbn.ioffe_warmup()).apply(x, params, stats, train=True)


@pytest.mark.parametrize(("x", "own"), [("float64", "float32"), ("float32", "float64")])
def test_parameters_of_another_precision(x, own, x64):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((8, 3)), x)
    params, stats = jbn.renorm().init(3, dtype=own)
    with jax.numpy_dtype_promotion("strict"):
        y, new = jbn.renorm().apply(x, params, stats, train=True)
    assert y.dtype == x.dtype
    assert jax.tree.map(lambda v: v.dtype, new) == jax.tree.map(lambda v: v.dtype, stats)


def test_a_traced_epsilon_widens_no_statistic(x64):
    x = jnp.ones((8, 3), jnp.float32)
    params, stats = jbn.renorm().init(3)

    def run(epsilon):
        return jbn.renorm().apply(x, params, stats, train=True, epsilon=epsilon)[1]

    assert jax.jit(run)(np.float64(1e-3))["var"].dtype == stats["var"].dtype
