"""The batch norm layers of a model are found by structure, not by their names."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from flax import nnx
from flax.core import FrozenDict

import jbn
from jbn.tools.norm_variables import norm_layers


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.LayerNorm(name="bn_that_is_none")(nn.Dense(3)(x))
        x = jbn.linen.BatchNorm(use_running_average=True, use_scale=False, name="first")(x)
        return nn.BatchNorm(use_running_average=True, use_bias=False, name="second")(x)


class Network(nn.Module):
    @nn.compact
    def __call__(self, x):
        return Block(name="block")(jbn.linen.BatchNorm(use_running_average=True, name="input")(x))


class Gaussian(nn.Module):
    """Parameters called mean and var, which are no statistics."""

    @nn.compact
    def __call__(self, x):
        mean, var = (self.param(name, nn.initializers.ones, (3,)) for name in ("mean", "var"))
        return (x - mean) / var


class NNXNetwork(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.layers = nnx.List([nnx.Linear(3, 3, rngs=rngs), jbn.nnx.BatchNorm(3, rngs=rngs)])
        self.params = nnx.BatchNorm(3, use_bias=False, rngs=rngs)
        self.other = nnx.LayerNorm(3, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.mean, self.var = nnx.Param(jnp.ones(3)), nnx.Param(jnp.ones(3))


def linen_variables(model):
    """Their shapes and dtypes, which are all that matters."""
    return jax.eval_shape(model.init, jax.random.key(0), jnp.ones((2, 3)))


def names(layers):
    return {path: tuple(arrays) for path, arrays in layers.items()}


LINEN = {
    ("batch_stats", "input"): ("mean", "var", "scale", "bias"),
    ("batch_stats", "block", "first"): ("mean", "var", "bias"),
    ("batch_stats", "block", "second"): ("mean", "var", "scale"),
}
NNX = {("layers", "1"): ("mean", "var", "scale", "bias"), ("params",): ("mean", "var", "scale")}


@pytest.mark.parametrize("kind", [dict, FrozenDict])
def test_in_linen(kind, standard_promotion):
    variables = linen_variables(Network())
    layers = norm_layers(kind(variables))
    assert names(layers) == LINEN
    block = layers["batch_stats", "block", "first"]
    assert block["bias"] is variables["params"]["block"]["first"]["bias"]
    assert block["var"] is variables["batch_stats"]["block"]["first"]["var"]


def test_in_what_holds_the_variables_of_linen(standard_promotion):
    layers = norm_layers({"state": linen_variables(Network()), "step": 3})
    assert names(layers) == {("state", *path): arrays for path, arrays in LINEN.items()}


@pytest.mark.parametrize("form", [lambda model: model, nnx.state, lambda model: dict(nnx.state(model))])
def test_in_nnx(form):
    model = NNXNetwork()
    layers = norm_layers(form(model))
    assert names(layers) == NNX
    assert (layers["params",]["scale"] == model.params.scale[...]).all()


def test_statistics_alone(standard_promotion):
    stats = linen_variables(Network())["batch_stats"]
    assert set(norm_layers(stats)) == {path[1:] for path in LINEN}
    assert set(norm_layers(nnx.state(NNXNetwork(), nnx.BatchStat))) == set(NNX)


def test_a_layer_alone_and_lists_of_layers():
    params, batch_stats = jbn.init(3)
    assert names(norm_layers({**params, **batch_stats})) == {(): ("mean", "var", "scale", "bias")}
    layers = norm_layers({"params": [params, {}], "batch_stats": [batch_stats, batch_stats]})
    both = {
        ("batch_stats", "0"): ("mean", "var", "scale", "bias"),
        ("batch_stats", "1"): ("mean", "var"),
    }
    assert names(layers) == both


def test_no_batch_norm(standard_promotion):
    assert norm_layers(linen_variables(Gaussian())) == {}
    assert norm_layers(linen_variables(nn.LayerNorm())) == {}
    assert norm_layers(nnx.LayerNorm(3, rngs=nnx.Rngs(0))) == {}
    assert norm_layers({}) == norm_layers([]) == norm_layers(jnp.ones(3)) == {}


def test_an_abstract_module():
    assert names(norm_layers(nnx.eval_shape(NNXNetwork))) == NNX
