"""`jbn.tools.recalibrate` on models that call, hold or ask for their layers in unusual ways."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import errors, nnx
from flax import linen as nn

import jbn

pytestmark = pytest.mark.usefixtures("standard_promotion")
RNG = np.random.default_rng(0)
BATCHES = [np.float32(i + (1 + i) * RNG.standard_normal((6, 3))) for i in range(2)]
WHOLE = np.concatenate(BATCHES)


def test_a_method_is_traced_anew():
    """Its object may have changed, which no argument shows."""

    class Scaling:
        gain = 1.0

        def call(self, model, x):
            return model(self.gain * x)

    layer, scaling = jbn.linen.BatchNorm(use_running_average=True), Scaling()
    variables = layer.init(jax.random.key(0), BATCHES[0])
    once = jbn.tools.recalibrate(layer, variables, BATCHES, call=scaling.call)
    scaling.gain = 10.0
    again = jbn.tools.recalibrate(layer, variables, BATCHES, call=scaling.call)
    np.testing.assert_allclose(
        again["batch_stats"]["mean"], 10 * once["batch_stats"]["mean"], rtol=1e-5
    )


def test_a_layer_called_twice_settles():
    """Its statistics are a fixed point: those of all that reaches it, where it has them."""
    layer = jbn.linen.BatchNorm(use_running_average=True)
    model = nn.Sequential([layer, nn.relu, layer])
    variables = model.init(jax.random.key(0), BATCHES[0])
    for _ in range(2):
        variables = jbn.tools.recalibrate(model, variables, BATCHES, layer_by_layer=True)
    stats = variables["batch_stats"]["layers_0"]
    x = WHOLE.astype(np.float64)
    seen = np.concatenate([x, np.maximum((x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5), 0)])
    np.testing.assert_allclose(stats["mean"], seen.mean(0), atol=2e-5)
    np.testing.assert_allclose(stats["var"], seen.var(0), rtol=2e-5)


def test_statistics_that_do_not_settle_are_warned_about(monkeypatch):
    monkeypatch.setattr(importlib.import_module("jbn.tools.recalibrate"), "_STEPS", 0)
    layer = jbn.linen.BatchNorm(use_running_average=True)
    model = nn.Sequential([layer, nn.relu, layer])
    variables = model.init(jax.random.key(0), BATCHES[0])
    with pytest.warns(UserWarning, match="still change after 1 passes") as caught:
        jbn.tools.recalibrate(model, variables, BATCHES, layer_by_layer=True)
    assert caught[0].filename == __file__


def test_nnx_code_that_asks_for_the_class_of_a_layer():
    class Model(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.layers = nnx.List([nnx.BatchNorm(3, rngs=rngs), nnx.BatchNorm(3, rngs=rngs)])

        def __call__(self, x):
            for layer in self.layers:
                x = nnx.relu(layer(x)) if isinstance(layer, nnx.BatchNorm) else layer(x)
            return x

    model = Model()
    jbn.tools.recalibrate(model, BATCHES, layer_by_layer=True)
    assert {type(layer) for layer in model.layers} == {nnx.BatchNorm}
    model.eval()
    first = np.maximum(model.layers[0](WHOLE), 0)
    np.testing.assert_allclose(model.layers[1].mean[...], first.mean(0), atol=1e-6)


def test_nnx_subclasses_are_called_as_they_are():
    class Rectified(jbn.nnx.BatchNorm):
        def __call__(self, *args, **options):
            return nnx.relu(super().__call__(*args, **options))

    rngs = nnx.Rngs(0)
    model = nnx.Sequential(Rectified(3, rngs=rngs), jbn.nnx.BatchNorm(3, rngs=rngs))
    jbn.tools.recalibrate(model, BATCHES, layer_by_layer=True)
    assert type(model.layers[0]) is Rectified
    model.eval()
    rectified = model.layers[0](WHOLE)
    np.testing.assert_allclose(model.layers[1].mean[...], rectified.mean(0), atol=1e-6)


def test_nnx_layers_with_attributes_of_the_users():
    class Scaled(nnx.Module):
        def __init__(self):
            self.norm = nnx.BatchNorm(3, rngs=nnx.Rngs(0))
            self.norm.gain = nnx.Param(2 * np.ones(3, np.float32))

        def __call__(self, x):
            return self.norm(x) * self.norm.gain[...]

    model = Scaled()
    jbn.tools.recalibrate(model, BATCHES)
    np.testing.assert_allclose(model.norm.mean[...], WHOLE.mean(0), atol=1e-6)


def test_statistics_that_two_nnx_layers_share():
    a, b = (jbn.nnx.BatchNorm(3, rngs=nnx.Rngs(0)) for _ in range(2))
    b.mean, b.var = a.mean, a.var
    with pytest.raises(ValueError, match="two layers with one mean, layers/0 and layers/1"):
        jbn.tools.recalibrate(nnx.Sequential(a, b), BATCHES)


def test_an_nnx_model_that_closes_over_itself():
    class Mapped(nnx.Module):
        def __init__(self):
            self.norm = jbn.nnx.BatchNorm(3, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return jax.vmap(lambda x: self.norm(x))(x)

    with pytest.raises(errors.TraceContextError) as caught:
        jbn.tools.recalibrate(Mapped(), BATCHES)
    assert any("jbn.tools.recalibrate notes down" in note for note in caught.value.__notes__)


def test_linen_statistics_in_boxes_and_those_of_other_modules():
    class Standardized(nn.Module):
        """Has a mean and a var that are none of a batch norm."""

        @nn.compact
        def __call__(self, x):
            mean = self.variable("batch_stats", "mean", lambda: np.float32(0))
            var = self.variable("batch_stats", "var", lambda: np.float32(1))
            return (x - mean.value) / jnp.sqrt(var.value)

    def boxed(init):
        return lambda key, shape, dtype: nn.Partitioned(init(shape, dtype), ("m",))

    layer = jbn.linen.BatchNorm(
        use_running_average=True, mean_init=boxed(np.zeros), var_init=boxed(np.ones)
    )
    model = nn.Sequential([Standardized(), layer])
    variables = model.init(jax.random.key(0), BATCHES[0])
    with pytest.warns(UserWarning, match="no finite value reached layers_0"):
        new = jbn.tools.recalibrate(model, variables, BATCHES, layer_by_layer=True)
    mean = new["batch_stats"]["layers_1"]["mean"]
    assert isinstance(mean, nn.Partitioned) and mean.names == ("m",)
    np.testing.assert_allclose(mean.value, WHOLE.mean(0), atol=1e-6)
