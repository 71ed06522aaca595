"""`jbn.streaming`: batches of one, all samples so far, what is refused; see test_variants.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jbn
from tolerance import tolerance

RNG = np.random.default_rng(0)
X = jnp.asarray(1 + 2 * RNG.standard_normal((6, 3, 4)), jnp.float32)
NORM = jbn.streaming()
PARAMS, STATS = NORM.init(4)
close = functools.partial(jax.tree.map, lambda a, b: np.testing.assert_allclose(a, b, 2e-5, 2e-5))


def run(xs, momentum, stats=None):
    """The output of each step and the last statistics, one batch after the other."""
    stats = NORM.init(xs.shape[-1], momentum=momentum)[1] if stats is None else stats

    def one(stats, x):
        return NORM.apply(x, {}, stats, train=True, momentum=momentum)[::-1]

    stats, ys = jax.jit(lambda: jax.lax.scan(one, stats, xs))()
    return ys, stats


@pytest.mark.parametrize("mean", [0.0, 1e4])
@pytest.mark.parametrize("size", [1, 4])
def test_the_plain_average_is_over_all_samples_so_far(size, mean):
    xs = jnp.asarray(mean + RNG.standard_normal((60, size, 3)), jnp.float32)
    ys, stats = run(xs, None)
    wide = np.asarray(xs, np.float64).reshape(-1, 3)
    # Each of 60 updates rounds the mean that is stored.
    rounding = 60 * np.finfo(np.float32).eps * max(1, mean)
    np.testing.assert_allclose(stats["mean"], wide.mean(0), rtol=0, atol=rounding)
    np.testing.assert_allclose(stats["var"], wide.var(0), rtol=4 * rounding + 2e-6)
    last = (np.asarray(xs[-1], np.float64) - wide.mean(0)) / np.sqrt(wide.var(0) + 1e-5)
    np.testing.assert_allclose(ys[-1], last, rtol=0, atol=8 * rounding + 2e-6)


def test_batches_of_one_value_keep_the_variance_of_the_stream():
    xs = jnp.asarray(3 + 2 * np.random.default_rng(1).standard_normal((4000, 1, 8)), jnp.float32)
    _, stats = run(xs, 0.99)
    np.testing.assert_allclose(stats["mean"].mean(), 3, atol=0.3)
    np.testing.assert_allclose(stats["var"].mean(), 4, rtol=0.15)
    plain = STATS | {"mean": jnp.zeros(8), "var": jnp.ones(8)}
    for x in xs[:3]:
        with pytest.warns(UserWarning, match="one value per channel"):
            _, plain = jbn.batch_norm(x, {}, plain, train=True, momentum=0.0)
    np.testing.assert_array_equal(plain["var"], 0)


def test_training_and_inference_see_the_same():
    y, stats = NORM.apply(X, PARAMS, STATS, train=True)
    close(y, jbn.batch_norm(X, PARAMS, stats, train=False)[0])


def test_the_gradient_is_that_of_the_equations_at_a_batch_of_one():
    """dy / dx of one value: (1 - its share), less what its share of the variance takes."""
    x, stats = jnp.array([[2.0]]), {"mean": jnp.array([1.0]), "var": jnp.array([3.0])}

    def y(x, a=0.75):
        mean = a * stats["mean"][None] + (1 - a) * x
        var = a * stats["var"][None] + a * (1 - a) * (x - stats["mean"][None]) ** 2
        return jnp.sum((x - mean) / jnp.sqrt(var + 1e-5))

    ours = jax.grad(lambda x: jnp.sum(NORM.apply(x, {}, stats, train=True, momentum=0.75)[0]))(x)
    np.testing.assert_allclose(ours, jax.grad(y)(x), **tolerance("float32", 4))


def test_a_channel_without_samples_is_normalized_as_in_inference():
    mask = jnp.ones(X.shape, bool).at[..., 2].set(False)
    stats = {"mean": jnp.arange(4.0), "var": jnp.full(4, 2.0)}
    y, new = NORM.apply(X, PARAMS, stats, train=True, mask=mask)
    inference, _ = jbn.batch_norm(X, PARAMS, stats, train=False)
    np.testing.assert_allclose(y[..., 2], inference[..., 2], rtol=1e-6)
    assert (new["mean"][2], new["var"][2]) == (2.0, 2.0)


def test_a_traced_momentum():
    momentum = jax.jit(lambda a: NORM.apply(X, PARAMS, STATS, train=True, momentum=a))
    close(momentum(0.9), NORM.apply(X, PARAMS, STATS, train=True, momentum=0.9))
    close(momentum(0.0), jbn.batch_norm(X, PARAMS, STATS, train=True, momentum=0.0))


def test_an_unbiased_variance_is_refused():
    with pytest.raises(ValueError, match=r"`running_variance` of jbn\.streaming must be 'biased'"):
        NORM.apply(X, PARAMS, STATS, train=True, running_variance="unbiased")


@pytest.mark.usefixtures("x64")
def test_the_plain_average_in_float64():
    xs = jnp.asarray(RNG.standard_normal((7, 3, 2)))
    stats = NORM.init(2, momentum=None, dtype=jnp.float64)[1]
    for x in xs:
        _, stats = NORM.apply(x, {}, stats, train=True, momentum=None)
    np.testing.assert_allclose(stats["var"], np.asarray(xs).reshape(-1, 2).var(0), rtol=1e-14)
