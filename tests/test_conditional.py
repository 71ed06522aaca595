"""`jbn.conditional`: shapes of scale and bias, other norms, errors; see test_variants.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jbn

RNG = np.random.default_rng(0)
X = jnp.asarray(1 + 2 * RNG.standard_normal((6, 3, 4)), jnp.float32)
STATS = jbn.init(4)[1]
PLAIN = jbn.batch_norm(X, {}, STATS, train=True)[0]
close = functools.partial(jax.tree.map, lambda a, b: np.testing.assert_allclose(a, b, 2e-5, 2e-5))


def apply(x=X, **kwargs):
    return jbn.conditional().apply(x, {}, STATS, train=True, **kwargs)[0]


@pytest.mark.parametrize("shape", [(6, 4), (6, 3, 4), (1, 3, 1), (6, 1, 1), (4,)], ids=str)
def test_for_examples_positions_or_the_whole_batch(shape):
    v = jnp.asarray(RNG.uniform(0.5, 2, shape), jnp.float32)
    wide = v[:, None] if shape == (6, 4) else v.reshape((1,) * (3 - v.ndim) + shape)
    close(apply(scale=v), PLAIN * wide)
    close(apply(bias=v), PLAIN + wide)


@pytest.mark.parametrize(("axis", "order"), [(1, (0, 2, 1)), (0, (2, 0, 1))], ids=str)
def test_examples_are_the_first_axis_that_is_reduced(axis, order):
    scale = jnp.asarray(RNG.uniform(0.5, 2, (6, 4)), jnp.float32)
    y = apply(x=X.transpose(order), scale=scale, axis=axis)
    close(y, apply(scale=scale).transpose(order))


@pytest.mark.parametrize(
    "norm",
    [jbn.ghost(groups=3), jbn.renorm(), jbn.inplace("leaky_relu")],
    ids=lambda norm: type(norm).__name__,
)
def test_of_another_norm(norm):
    scale = jnp.asarray(RNG.uniform(0.5, 2, (6, 1, 4)), jnp.float32)
    bias = jnp.asarray(RNG.standard_normal((6, 1, 4)), jnp.float32)
    y, stats = jbn.conditional(norm).apply(X, {}, STATS, train=True, scale=scale, bias=bias)
    close((y, stats), norm.apply(X, {"scale": scale, "bias": bias}, STATS, train=True))


def test_a_class_conditional_layer_learns_its_embeddings():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, label):
            gain = nn.Embed(10, 8, embedding_init=nn.initializers.zeros)(label)
            layer = jbn.linen.BatchNorm(use_running_average=False, norm=jbn.conditional())
            return layer(x, scale=1 + gain[:, :4], bias=gain[:, 4:])

    label = jnp.array([3, 3, 3, 7, 7, 7])
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        variables = Block().init(jax.random.key(0), X, label)

        @jax.jit
        @jax.grad
        def gradient(params):
            given = {"params": params, "batch_stats": variables["batch_stats"]}
            y, _ = Block().apply(given, X, label, mutable=["batch_stats"])
            return jnp.sum(y**2)

        table = gradient(variables["params"])["Embed_0"]["embedding"]
    assert set(variables["params"]) == {"Embed_0"}
    np.testing.assert_array_equal(np.flatnonzero(np.abs(table).sum(1)), [3, 7])


def test_a_norm_that_is_conditional_itself_is_refused():
    with pytest.raises(
        ValueError, match=r"`norm` of jbn\.conditional must not take `scale` and `bias`"
    ):
        jbn.conditional(jbn.conditional())
    with pytest.raises(TypeError, match=r"`norm` must be a jbn\.Norm"):
        jbn.conditional(jbn.ghost)


def test_wrong_calls():
    with pytest.raises(TypeError, match="`scale` or `bias` must be given in the call"):
        apply()
    with pytest.raises(
        ValueError, match=r"`params\['scale'\]` must have the shape of the feature axes"
    ):
        apply(scale=jnp.ones((6, 3)))


def test_examples_behind_several_features():
    scale = jnp.asarray(RNG.uniform(0.5, 2, (3, 6, 4)), jnp.float32)
    x = X.transpose(1, 0, 2)
    norm = jbn.conditional()
    _, stats = norm.init((6, 4))
    y = norm.apply(x, {}, stats, train=True, scale=scale, axis=(1, 2))[0]
    turned = norm.apply(x.transpose(1, 0, 2), {}, stats, train=True, scale=scale, axis=(0, 2))[0]
    close(turned, y.transpose(1, 0, 2))


@pytest.mark.parametrize(
    "given",
    [{"bias": (6, 4)}, {"scale": (6, 4), "bias": (4,)}, {"scale": (4,), "bias": (6, 4)}],
    ids=str,
)
def test_of_an_inplace_norm_whose_scale_and_bias_are_of_different_rank(given):
    values = {n: jnp.asarray(RNG.uniform(0.5, 2, shape), jnp.float32) for n, shape in given.items()}
    x = X.transpose(0, 2, 1)
    y = jbn.conditional(jbn.inplace("identity")).apply(x, {}, STATS, train=True, axis=1, **values)[0]
    close(y, jbn.conditional().apply(x, {}, STATS, train=True, axis=1, **values)[0])


def test_frozen_is_for_the_outside():
    with pytest.raises(ValueError, match="no gradient would flow to what is given at the call"):
        jbn.conditional(jbn.frozen())
    assert jbn.frozen(jbn.conditional()) and jbn.conditional(jbn.frozen(trainable_params=True))
