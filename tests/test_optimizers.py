"""`jbn.tools.decay_mask` and `jbn.tools.freeze`, in steps of real optimizers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from flax.core import FrozenDict

import jbn

pytestmark = pytest.mark.usefixtures("standard_promotion")
X = jax.random.normal(jax.random.key(0), (8, 3))
AFFINE = {"BatchNorm_0": {"scale", "bias"}, "without_scale": {"bias"}, "BatchNorm_1": {"scale"}}


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.LayerNorm()(nn.Dense(3)(x))
        x = jbn.linen.BatchNorm(use_running_average=False)(x)
        x = jbn.linen.BatchNorm(use_running_average=False, use_scale=False, name="without_scale")(x)
        # Statistics of groups, and those of a layer of Flax.
        x = nn.BatchNorm(use_running_average=False, use_bias=False)(nn.relu(x))
        norm = jbn.linen.BatchNorm(use_running_average=False, norm=jbn.batch_group(1), name="group")
        return nn.Dense(1)(norm(x))


class NNX(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.Dense_0, self.Dense_1 = nnx.Linear(3, 3, rngs=rngs), nnx.Linear(3, 1, rngs=rngs)
        self.LayerNorm_0 = nnx.LayerNorm(3, rngs=rngs)
        self.BatchNorm_0 = jbn.nnx.BatchNorm(3, rngs=rngs)
        self.without_scale = jbn.nnx.BatchNorm(3, use_scale=False, rngs=rngs)
        self.BatchNorm_1 = nnx.BatchNorm(3, use_bias=False, rngs=rngs)
        self.group = jbn.nnx.BatchNorm(3, norm=jbn.batch_group(1), rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        x = self.without_scale(self.BatchNorm_0(self.LayerNorm_0(self.Dense_0(x))))
        return self.Dense_1(self.group(self.BatchNorm_1(nnx.relu(x))))


def in_norm(layer, name):
    return name in {**AFFINE, "group": {"scale", "bias"}}.get(layer, ())


def params_of(variables):
    if isinstance(variables, nnx.Module):
        return nnx.to_pure_dict(nnx.state(variables, nnx.Param))
    return dict(variables["params"])


@functools.cache
def linen():
    return jax.jit(Linen().init)(jax.random.key(1), X)


def moved(before, after):
    return jax.tree.map(lambda a, b: not np.array_equal(a, b), params_of(before), params_of(after))


def trained(variables, transformation, scale=1.0):
    """The model after one step on a loss times `scale`."""
    if isinstance(variables, nnx.Module):
        model = nnx.clone(variables)
        optimizer = nnx.Optimizer(model, transformation, wrt=nnx.Param)
        grads = nnx.jit(nnx.grad(lambda model: scale * jnp.sum(jnp.tanh(model(X)))))(model)
        optimizer.update(model, grads)
        return model

    def loss(params):
        y, _ = Linen().apply({**variables, "params": params}, X, mutable=["batch_stats"])
        return scale * jnp.sum(jnp.tanh(y))

    params = variables["params"]
    updates, _ = transformation.update(
        jax.jit(jax.grad(loss))(params), transformation.init(params), params
    )
    return {"params": optax.apply_updates(params, updates)}


def randomized(variables):
    """With biases that weight decay would change, and no two scales alike."""
    keys = iter(jax.random.split(jax.random.key(2), 100))
    new = lambda v: jax.random.uniform(next(keys), v.shape, minval=0.5)  # noqa: E731
    if isinstance(variables, nnx.Module):
        model = nnx.clone(variables)
        nnx.update(model, jax.tree.map(new, nnx.state(model, nnx.Param)))
        return model
    return {**variables, "params": jax.tree.map(new, variables["params"])}


@pytest.fixture(params=["linen", "nnx"])
def model(request):
    return randomized(linen() if request.param == "linen" else NNX())


def expected(model, value):
    return {
        layer: {name: value(layer, name) for name in params}
        for layer, params in params_of(model).items()
    }


def test_adamw_decays_all_but_scale_and_bias(model):
    mask = jbn.tools.decay_mask(model)
    after = trained(model, optax.adamw(0.1, weight_decay=0.1, mask=mask), scale=0.0)
    assert moved(model, after) == expected(model, lambda *which: not in_norm(*which))


def test_or_all_but_scale(model):
    mask = jbn.tools.decay_mask(model, decay_bias=True)
    decay = optax.masked(optax.add_decayed_weights(0.1), mask)
    after = trained(model, optax.chain(decay, optax.sgd(0.1)), scale=0.0)
    assert moved(model, after) == expected(
        model, lambda layer, name: not (in_norm(layer, name) and name == "scale")
    )


def test_partition_freezes_batch_norm_alone(model):
    ways = {"trainable": optax.adam(0.1), "frozen": optax.set_to_zero()}
    after = trained(model, optax.partition(ways, jbn.tools.freeze(model)))
    still = moved(model, after)
    # What a batch norm follows has no gradient in its bias; everything else moves.
    assert {k: v for k, v in still.items() if k in AFFINE or k == "group"} == {
        layer: dict.fromkeys(params, False)
        for layer, params in params_of(model).items()
        if layer in AFFINE or layer == "group"
    }
    assert still["Dense_1"] == {"kernel": True, "bias": True} and still["LayerNorm_0"]["scale"]


def test_masked_with_the_labels(model):
    frozen = jax.tree.map(lambda label: label == "frozen", jbn.tools.freeze(model))
    after = trained(model, optax.chain(optax.sgd(0.1), optax.masked(optax.set_to_zero(), frozen)))
    assert not any(jax.tree.leaves({k: moved(model, after)[k] for k in AFFINE}))
    assert moved(model, after)["Dense_1"]["kernel"]


def test_labels(model):
    labels = jbn.tools.freeze(model)
    if isinstance(model, nnx.Module):
        assert isinstance(labels, nnx.State)
        labels = nnx.to_pure_dict(labels)
    assert labels == expected(model, lambda *which: "frozen" if in_norm(*which) else "trainable")


def test_the_tree_is_the_parameters_own():
    frozen = FrozenDict(linen())
    assert jax.tree.structure(jbn.tools.decay_mask(frozen)) == jax.tree.structure(frozen["params"])
    model = NNX()
    params = nnx.as_pure(nnx.state(model, nnx.Param))
    for variables in (model, nnx.state(model), nnx.eval_shape(NNX)):
        assert jax.tree.structure(jbn.tools.decay_mask(variables)) == jax.tree.structure(params)


def test_all_parameters_of_a_variant_are_frozen():
    params, batch_stats = jbn.init(3)
    variables = {"params": [{**params, "gate": params["bias"]}], "batch_stats": [batch_stats]}
    assert jbn.tools.freeze(variables)[0] == dict.fromkeys(("scale", "bias", "gate"), "frozen")
    assert jbn.tools.decay_mask(variables)[0] == {"scale": False, "bias": False, "gate": True}


def test_inside_of_jit():
    @jax.jit
    def init(variables):
        mask = jbn.tools.decay_mask(variables)
        return optax.adamw(0.1, mask=mask).init(variables["params"])

    assert jax.tree.leaves(init(linen()))


@pytest.mark.parametrize("tool", [jbn.tools.decay_mask, jbn.tools.freeze])
class TestErrors:
    def test_parameters_alone(self, tool):
        with pytest.raises(ValueError, match=r"`variables` must be Linen's, .*got \['BatchNorm_0', "):
            tool(linen()["params"])
        with pytest.raises(ValueError, match=r"must have a batch norm, got none .*the statistics too"):
            tool({"params": linen()["params"]})
        with pytest.raises(ValueError, match=r"must have a batch norm, got none .*the statistics too"):
            tool(nnx.state(NNX(), nnx.Param))

    def test_no_tree(self, tool):
        with pytest.raises(ValueError, match="or its state, got list"):
            tool([1, 2])
        with pytest.raises(ValueError, match="or its state, got Linen"):
            tool(Linen())
