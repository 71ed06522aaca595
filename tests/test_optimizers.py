"""`jbn.tools.decay_mask` and `jbn.tools.freeze`, in steps of real optimizers."""

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
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(8, 3)), jnp.float32)
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


def filled(shapes):
    """Values that weight decay changes, and no two alike."""
    return jax.tree.map(lambda v: jnp.asarray(RNG.uniform(0.5, 1.5, v.shape), v.dtype), shapes)


def linen():
    return filled(jax.eval_shape(Linen().init, jax.random.key(1), X))


def nnx_model():
    model = NNX()
    nnx.update(model, filled(nnx.state(model, nnx.Param)))
    return model


def gradients(variables):
    if isinstance(variables, nnx.Module):
        return nnx.jit(nnx.grad(lambda model: jnp.sum(jnp.tanh(model(X)))))(nnx.clone(variables))

    def loss(params):
        y, _ = Linen().apply({**variables, "params": params}, X, mutable=["batch_stats"])
        return jnp.sum(jnp.tanh(y))

    return jax.jit(jax.grad(loss))(variables["params"])


def zero_gradients(variables):
    is_module = isinstance(variables, nnx.Module)
    params = nnx.state(variables, nnx.Param) if is_module else variables["params"]
    return jax.tree.map(jnp.zeros_like, params)


def trained(variables, transformation, grads):
    """The model after one step."""
    if isinstance(variables, nnx.Module):
        model = nnx.clone(variables)
        nnx.Optimizer(model, transformation, wrt=nnx.Param).update(model, grads)
        return model
    params = variables["params"]
    updates, _ = transformation.update(grads, transformation.init(params), params)
    return {"params": optax.apply_updates(params, updates)}


def moved(before, after):
    return jax.tree.map(lambda a, b: not np.array_equal(a, b), params_of(before), params_of(after))


@pytest.fixture(params=[linen, nnx_model], ids=["linen", "nnx"])
def model(request):
    return request.param()


def expected(model, value):
    return {
        layer: {name: value(layer, name) for name in params}
        for layer, params in params_of(model).items()
    }


def test_adamw_decays_all_but_scale_and_bias(model):
    mask = jbn.tools.decay_mask(model)
    after = trained(model, optax.adamw(0.1, weight_decay=0.1, mask=mask), zero_gradients(model))
    assert moved(model, after) == expected(model, lambda *which: not in_norm(*which))


def test_or_all_but_scale(model):
    mask = jbn.tools.decay_mask(model, decay_bias=True)
    decay = optax.masked(optax.add_decayed_weights(0.1), mask)
    after = trained(model, optax.chain(decay, optax.sgd(0.1)), zero_gradients(model))
    assert moved(model, after) == expected(
        model, lambda layer, name: not (in_norm(layer, name) and name == "scale")
    )


def test_partition_freezes_batch_norm_alone(model):
    ways = {"trainable": optax.adam(0.1), "frozen": optax.set_to_zero()}
    after = moved(
        model, trained(model, optax.partition(ways, jbn.tools.freeze(model)), gradients(model))
    )
    frozen = [after[layer][name] for layer in after for name in after[layer] if in_norm(layer, name)]
    assert frozen == 6 * [False]
    # The biases in front of a batch norm have no gradient but for rounding.
    assert after["Dense_0"]["kernel"] and all(after["Dense_1"].values())


def test_masked_with_the_labels(model):
    frozen = jax.tree.map(lambda label: label == "frozen", jbn.tools.freeze(model))
    decay = optax.add_decayed_weights(0.1)
    transformation = optax.chain(decay, optax.sgd(0.1), optax.masked(optax.set_to_zero(), frozen))
    after = trained(model, transformation, zero_gradients(model))
    assert moved(model, after) == expected(model, lambda *which: not in_norm(*which))


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

    def test_no_parameters(self, tool):
        variables = {"params": {}, "batch_stats": linen()["batch_stats"]}
        with pytest.raises(ValueError, match="`variables` must have parameters, got none"):
            tool(variables)

    def test_no_tree(self, tool):
        with pytest.raises(ValueError, match="or its state, got list"):
            tool([1, 2])
        with pytest.raises(ValueError, match="or its state, got Linen"):
            tool(Linen())
