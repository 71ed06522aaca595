"""The layers of a model with another norm: jbn's, Flax's, subclasses, shared ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import jbn
from jbn.tools.norm_layers import innermost, interceptor, with_norms

pytestmark = pytest.mark.usefixtures("standard_promotion")
X = jnp.asarray(np.random.default_rng(0).standard_normal((4, 5, 3)), jnp.float32)
WEIGHTED = functools.partial(innermost, change=lambda norm: jbn.weighted_inference(0.5, norm))


def weighted(x):
    """By the mixture of an example and mean 0, variance 1."""
    x = np.float64(x)
    own, var = x.mean(1, keepdims=True), x.var(1, keepdims=True)
    mean = own / 2
    return (x - mean) / np.sqrt((var + 1) / 2 + own**2 / 4 + 1e-5)


def test_the_innermost_norm():
    norm = jbn.domains(2, norm=jbn.frozen(jbn.ghost(groups=2)))
    changed = innermost(norm, lambda norm: jbn.plain)
    assert changed == jbn.domains(2, norm=jbn.frozen())
    held = jbn.weighted_inference(0.1, jbn.ghost(groups=2))
    assert innermost(jbn.frozen(held), lambda norm: norm.norm) == jbn.frozen(jbn.ghost(groups=2))


class Scaled(jbn.linen.BatchNorm):
    """A layer of one's own."""

    factor: float = 3.0

    def __call__(self, x, *args, **kwargs):
        return self.factor * super().__call__(x, *args, **kwargs)


@pytest.mark.parametrize(
    ("layer", "factor"), [(jbn.linen.BatchNorm, 1), (nn.BatchNorm, 1), (Scaled, 3)]
)
@pytest.mark.parametrize("given", ["field", "argument", "keyword"])
def test_linen(layer, factor, given):
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            if given == "field":
                return layer(use_running_average=True)(x)
            return layer()(x, True) if given == "argument" else layer()(x, use_running_average=True)

    variables = Network().init(jax.random.key(0), X)
    with nn.intercept_methods(interceptor(WEIGHTED)):
        y = Network().apply(variables, X)
    np.testing.assert_allclose(y, factor * weighted(X), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(Network().apply(variables, X), factor * X, rtol=1e-4)


def test_fields_take_precedence_over_the_call():
    layer = nn.BatchNorm(use_running_average=True)
    variables = layer.init(jax.random.key(0), X)
    with nn.intercept_methods(interceptor(lambda norm: norm, use_running_average=False)):
        _, updated = layer.apply(variables, X, mutable=["batch_stats"])
    assert updated["batch_stats"]["mean"].any()


class Network(nnx.Module):
    """Layers in lists, in sequences, and twice."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.listed = nnx.List([nnx.BatchNorm(3, rngs=rngs), jbn.nnx.BatchNorm(3, rngs=rngs)])
        self.sequence = nnx.Sequential(jbn.nnx.BatchNorm(3, norm=jbn.frozen(), rngs=rngs))
        self.again = self.listed[0]

    def __call__(self, x):
        return [layer(x) for layer in (*self.listed, self.sequence, self.again)]


def test_nnx():
    model = Network()
    model.eval()
    copy, layers = with_norms(model, WEIGHTED)
    assert len(layers) == 3 and copy.again is copy.listed[0]
    assert type(model.again) is nnx.BatchNorm and model.listed[1].norm == jbn.plain
    assert copy.sequence.layers[0].norm == jbn.frozen(jbn.weighted_inference(0.5))
    for y in copy(X):
        np.testing.assert_allclose(y, weighted(X), rtol=1e-4, atol=1e-5)
    # The same parameters, whatever the norm.
    jax.tree.map(np.testing.assert_array_equal, nnx.state(copy), nnx.state(model))


def test_fields_of_flax_nnx_layers_are_kept():
    model = nnx.Sequential(
        nnx.BatchNorm(3, axis=1, epsilon=0.1, use_bias=False, momentum=0.5, rngs=nnx.Rngs(0))
    )
    copy, _ = with_norms(model, lambda norm: norm)
    x = jnp.moveaxis(X, -1, 1)
    np.testing.assert_allclose(copy(x), model(x), rtol=1e-4, atol=1e-5)
    for name in ("mean", "var"):
        ours, flax = (getattr(m.layers[0], name)[...] for m in (copy, model))
        np.testing.assert_allclose(ours, flax, rtol=1e-4, atol=1e-5)
