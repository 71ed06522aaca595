"""`jbn.tools.convert_model`: Flax's NNX layers become jbn's, in place."""

import functools
import inspect
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jbn
from jbn.tools import convert_model

pytestmark = pytest.mark.usefixtures("standard_promotion")
X = 3 + 2 * jax.random.normal(jax.random.key(0), (8, 3))


class Activated(nnx.BatchNorm):
    def __call__(self, x, **options):
        return nnx.relu(super().__call__(x, **options))


class Network(nnx.Module):
    """One norm in four places, and others in containers of every kind."""

    def __init__(self, rngs):
        norm = functools.partial(nnx.BatchNorm, 3, rngs=rngs)
        self.first = norm(momentum=0.9)
        self.again = self.first
        self.dense = nnx.Linear(3, 3, rngs=rngs)
        self.list = nnx.List([self.first, norm()])
        self.dict = nnx.Dict(a=norm())
        self.plain = nnx.data([norm(), {"b": (norm(), self.first)}])
        self.sequence = nnx.Sequential(nnx.Linear(3, 3, rngs=rngs), norm())

    def norms(self):
        plain = [self.plain[0], *self.plain[1]["b"]]
        return [self.first, self.again, *self.list, self.dict.a, *plain, self.sequence.layers[1]]

    def __call__(self, x):
        for layer in self.norms():
            x = self.dense(layer(x))
        return self.sequence(x)


@nnx.jit
def stepped(model, optimizer, x):
    """One step of the optimizer, and the loss before it."""
    value, grads = nnx.value_and_grad(lambda model: jnp.mean((model(x) - jnp.cos(x)) ** 2))(model)
    optimizer.update(model, grads)
    return value


def test_every_layer_wherever_it_stands_and_what_is_shared():
    model = Network(nnx.Rngs(0))
    before, state = model.norms(), nnx.state(model)
    variables = [getattr(layer, n) for layer in before for n in ("scale", "bias", "mean", "var")]
    assert convert_model(model) is model
    after = model.norms()
    assert {type(layer) for layer in after} == {jbn.nnx.BatchNorm}
    assert [after.index(layer) for layer in after] == [0, 0, 0, 3, 4, 5, 6, 0, 8]
    assert all(a is b for a, b in zip(before, after, strict=True))
    same = [getattr(layer, n) for layer in after for n in ("scale", "bias", "mean", "var")]
    assert all(a is b for a, b in zip(variables, same, strict=True))
    assert jax.tree.structure(nnx.state(model)) == jax.tree.structure(state)


def test_training_goes_on_with_the_same_optimizer():
    import optax

    def network(rngs):
        first = nnx.Linear(3, 8, use_bias=False, rngs=rngs)
        return nnx.Sequential(first, nnx.BatchNorm(8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs))

    models = [network(nnx.Rngs(0)) for _ in range(2)]
    optimizers = [nnx.Optimizer(model, optax.sgd(0.1, momentum=0.9), wrt=nnx.Param) for model in models]
    for index in range(4):
        if index == 2:
            convert_model(models[1])
        values = [stepped(*both, X) for both in zip(models, optimizers, strict=True)]
        np.testing.assert_allclose(*values, rtol=1e-4)
    states = [nnx.to_pure_dict(nnx.state(model)) for model in models]
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), *states)
    for model in models:
        model.eval()
    np.testing.assert_allclose(*(model(X) for model in models), rtol=1e-3, atol=1e-4)


def test_arguments_are_carried_over():
    def promote(arrays, *, dtype):
        return arrays

    given = {
        "use_running_average": True,
        "axis": 1,
        "momentum": 0.5,
        "epsilon": 1e-2,
        "dtype": jnp.bfloat16,
        "param_dtype": jnp.float16,
        "use_bias": False,
        "use_scale": True,
        "axis_name": "devices",
        "axis_index_groups": [[0, 1]],
        "use_fast_variance": False,
        "promote_dtype": promote,
    }
    layer = nnx.BatchNorm(3, **given, rngs=nnx.Rngs(0))
    metadata = {"bias_init", "scale_init", "rngs", "bias_metadata", "scale_metadata", "num_features"}
    assert set(given) == set(inspect.signature(nnx.BatchNorm.__init__).parameters) - metadata - {"self"}
    convert_model(layer, jbn.ghost(2))
    assert {name: getattr(layer, name) for name in given} == given
    assert layer.norm == jbn.ghost(2) and layer.bias is None and layer.scale.dtype == jnp.float16


def test_a_variant_is_used_and_adds_its_statistics():
    layer = nnx.BatchNorm(3, momentum=0.9, rngs=nnx.Rngs(0))
    layer.mean.set_value(jnp.full(3, 3.0))
    norm = jbn.renorm(**jbn.ioffe_warmup())
    params, stats = norm.init(3)
    convert_model(layer, norm)
    expected, _ = norm.apply(X, params, {**stats, "mean": jnp.full(3, 3.0)}, train=True, momentum=0.9)
    np.testing.assert_allclose(layer(X), expected, rtol=1e-5, atol=1e-6)
    assert layer.steps == 1


def test_domains_begin_with_the_statistics_of_the_layer():
    layer = nnx.BatchNorm(3, rngs=nnx.Rngs(0))
    layer(X)
    mean = layer.mean[...]
    convert_model(layer, jbn.domains(2))
    np.testing.assert_array_equal(layer.mean[...], [mean, mean])
    layer(X, domain=1)
    np.testing.assert_array_equal(layer.mean[0], mean)
    assert (layer.mean[1] != mean).all()


def test_layers_stacked_by_vmap():
    @nnx.vmap
    def make(key):
        return nnx.BatchNorm(3, rngs=nnx.Rngs(key))

    @nnx.vmap
    def call(layer, x):
        return layer(x)

    layers = make(jax.random.split(jax.random.key(0), 2))
    convert_model(layers)
    y = call(layers, jnp.stack([X, 2 * X]))
    np.testing.assert_allclose(y[0], y[1], atol=1e-4)
    assert layers.mean.shape == (2, 3)
    layers = make(jax.random.split(jax.random.key(0), 2))
    with pytest.raises(ValueError, match=r"`norm` must have a 'mean' like .* of shape \(2, 3\)"):
        convert_model(layers, jbn.domains(2))


def test_under_jit_and_through_split_and_merge():
    model = convert_model(Network(nnx.Rngs(0)))
    graph, state = nnx.split(model)
    np.testing.assert_array_equal(nnx.merge(graph, state)(X), model(X))


def test_subclasses_are_left_and_named():
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(nnx.BatchNorm(3, rngs=rngs), Activated(3, rngs=rngs))
    with pytest.warns(UserWarning, match=r"are left as they are: layers.1 \(Activated\)$"):
        convert_model(model)
    assert [type(layer) for layer in model.layers] == [jbn.nnx.BatchNorm, Activated]
    with pytest.raises(ValueError, match=r"got none but subclasses: layers.1 \(Activated\)$"):
        convert_model(model)


def test_nothing_changes_where_a_layer_does_not_fit():
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(
        nnx.BatchNorm(3, use_scale=False, use_bias=False, rngs=rngs), nnx.BatchNorm(3, rngs=rngs)
    )
    with pytest.raises(
        ValueError, match=r"'scale' like that of layers.1, of shape \(3,\), got none from"
    ):
        convert_model(model, jbn.conditional())
    with pytest.raises(ValueError, match=r"'scale' like .*, got \(2, 3\) from Domains"):
        convert_model(model, jbn.domains(2, share_params=False))
    assert {type(layer) for layer in model.layers} == {nnx.BatchNorm}


def test_what_is_no_model_and_no_norm():
    with pytest.raises(ValueError, match=r"`model` must hold a flax.nnx.BatchNorm, got none$"):
        convert_model(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
    with pytest.raises(
        TypeError, match=r"`model` must be an nnx.Module, got dict; .*jbn.tools.converted"
    ):
        convert_model({})
    with pytest.raises(TypeError, match=r"`norm` must be a jbn.Norm"):
        convert_model(nnx.BatchNorm(3, rngs=nnx.Rngs(0)), jbn.ghost)


def test_no_warning_without_subclasses():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert_model(Network(nnx.Rngs(0)))


def test_what_a_user_has_set_on_a_layer_is_carried_over():
    layer = nnx.BatchNorm(3, rngs=nnx.Rngs(0))
    layer.gain, layer.purpose = nnx.Param(np.ones(3, np.float32)), "gates"
    gain = layer.gain
    jbn.tools.convert_model(layer, jbn.domains(2))
    assert layer.gain is gain and layer.purpose == "gates"
    assert "gain" in nnx.state(layer, nnx.Param)


def test_a_model_of_shapes():
    model = nnx.eval_shape(lambda: nnx.Sequential(nnx.BatchNorm(4, rngs=nnx.Rngs(0))))
    jbn.tools.convert_model(model, jbn.domains(2))
    assert model.layers[0].mean.get_value() == jax.ShapeDtypeStruct((2, 4), np.float32)
