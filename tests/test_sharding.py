"""A channel-sharded model keeps its statistics sharded: the state's partition metadata, both layers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jbn
import reference

pytestmark = [pytest.mark.several_devices, pytest.mark.usefixtures("standard_promotion")]
NAMES = ("scale", "bias", "mean", "var")
X = jnp.asarray(1 + np.random.default_rng(0).standard_normal((8, 4)), jnp.float32)


def mesh(kind):
    return jax.make_mesh((2, 2), ("data", "model"), axis_types=(kind, kind))


def spec_of(value):
    return (
        jax.typeof(value).sharding.spec if isinstance(value, jax.core.Tracer) else value.sharding.spec
    )


def partitioned(initializer):
    return nn.with_partitioning(initializer, ("model",))


def linen_layer():
    return jbn.linen.BatchNorm(
        use_running_average=False,
        momentum=0.0,
        scale_init=partitioned(nn.initializers.ones),
        bias_init=partitioned(nn.initializers.zeros),
        mean_init=partitioned(nn.initializers.zeros),
        var_init=partitioned(nn.initializers.ones),
    )


def test_linen_states_its_partition_specs():
    variables = linen_layer().init(jax.random.key(0), X)
    specs = nn.get_partition_spec(variables)
    assert {name: P("model") for name in NAMES} == {**specs["params"], **specs["batch_stats"]}


def test_linen_keeps_the_statistics_sharded():
    layer, devices = linen_layer(), mesh(AxisType.Auto)
    variables = layer.init(jax.random.key(0), X)
    shardings = jax.tree.map(
        functools.partial(NamedSharding, devices), nn.get_partition_spec(variables)
    )
    variables = jax.device_put(variables, shardings)
    x = jax.device_put(X, NamedSharding(devices, P("data", "model")))

    @functools.partial(jax.jit, out_shardings=(None, shardings["batch_stats"]))
    def step(variables, x):
        y, updated = layer.apply(variables, x, mutable=["batch_stats"])
        return y, updated["batch_stats"]

    with jax.set_mesh(devices):
        y, stats = step(variables, x)
    assert isinstance(stats["mean"], nn.Partitioned)
    for name, value in zip(("mean", "var"), reference.moments(X)[:2], strict=True):
        assert spec_of(stats[name].value) == P("model")
        np.testing.assert_allclose(stats[name].value, value, rtol=1e-6)
    np.testing.assert_allclose(y, reference.batch_norm(X, {}), rtol=1e-6, atol=1e-6)


def nnx_layer():
    metadata = {"out_sharding": ("model",)}
    return jbn.nnx.BatchNorm(
        4, momentum=0.0, rngs=nnx.Rngs(0), **{f"{name}_metadata": metadata for name in NAMES}
    )


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_nnx_keeps_the_statistics_sharded(kind):
    with jax.set_mesh(mesh(kind)):
        layer = nnx_layer()
        for name in NAMES:
            assert spec_of(getattr(layer, name)[...]) == P("model"), name
        x = jax.device_put(X, NamedSharding(mesh(kind), P("data", "model")))
        y = nnx.jit(lambda layer, x: layer(x))(layer, x)
        for name, value in zip(("mean", "var"), reference.moments(X)[:2], strict=True):
            assert spec_of(getattr(layer, name)[...]) == P("model")
            np.testing.assert_allclose(getattr(layer, name)[...], value, rtol=1e-6)
    np.testing.assert_allclose(y, reference.batch_norm(X, {}), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("spec", [P(), P("data")], ids=str)
def test_explicit_axes_with_sharded_state_and_channels_that_are_not(spec):
    devices = mesh(AxisType.Explicit)
    with jax.set_mesh(devices):
        params, batch_stats = jax.device_put(jbn.init(4), NamedSharding(devices, P("model")))
        x = jax.device_put(X, NamedSharding(devices, spec))
        y, stats = jax.jit(functools.partial(jbn.batch_norm, train=True, momentum=0.0))(
            x, params, batch_stats
        )
    assert spec_of(stats["mean"]) == P("model")
    np.testing.assert_allclose(stats["var"], reference.moments(X)[1], rtol=1e-6)
    np.testing.assert_allclose(y, reference.batch_norm(X, {}), rtol=1e-6, atol=1e-6)
