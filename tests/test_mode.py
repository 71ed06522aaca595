"""Training or inference by a flag that is traced, or a bool, or an array."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import cases
import jbn
from tolerance import tolerance


def close(actual, expected, dtype="float32", reduced=1):
    np.testing.assert_allclose(np.asarray(actual, np.complex128), expected, **tolerance(dtype, reduced))


@pytest.mark.parametrize("train", [True, False])
def test_a_traced_train_flag_gives_what_the_python_bool_gives(train):
    case = cases.NAMES["sequence"]
    x, params, batch_stats, kwargs = case.make()
    traced = jax.jit(
        lambda flag: jbn.batch_norm(x, params, batch_stats, train=flag, **kwargs, **case.running())
    )
    expected = jbn.batch_norm(x, params, batch_stats, train=train, **kwargs, **case.running())
    jax.tree.map(lambda a, b: close(a, b, reduced=15), traced(train), expected)


def test_a_concrete_boolean_array_serves_as_train_flag():
    x, params, batch_stats, _ = cases.NAMES["mlp"].make()
    expected = jbn.batch_norm(x, params, batch_stats, train=True)
    for flag in (jnp.array(True), np.True_):
        jax.tree.map(
            np.testing.assert_array_equal, jbn.batch_norm(x, params, batch_stats, train=flag), expected
        )


@pytest.mark.several_devices
def test_a_traced_train_flag_under_checked_shard_map():
    x, params, batch_stats, _ = cases.NAMES["mlp"].make()
    x = jnp.concatenate([x, x[:2]])
    devices = jax.make_mesh((4,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, whole = jax.sharding.PartitionSpec("i"), jax.sharding.PartitionSpec()

    def local(x, flag):
        y, stats = jbn.batch_norm(x, params, batch_stats, train=flag)
        return y, jax.tree.map(lambda v: v[None], stats)

    mapped = jax.shard_map(local, mesh=devices, in_specs=(rows, whole), out_specs=rows)
    for flag in (True, False):
        y, stats = jax.jit(mapped)(x, flag)
        for device in range(4):
            part = slice(2 * device, 2 * device + 2)
            expected = jbn.batch_norm(x[part], params, batch_stats, train=flag)
            actual = y[part], jax.tree.map(lambda v, d=device: v[d], stats)
            jax.tree.map(lambda a, b: close(a, b, reduced=6), actual, expected)


def test_a_concrete_flag_as_an_array_does_not_recompile():
    x, params, batch_stats, _ = cases.NAMES["mlp"].make()
    jbn.batch_norm(x, params, batch_stats, train=True)
    before = jbn._batch_norm._train._cache_size()
    jbn.batch_norm(x, params, batch_stats, train=jnp.array(True))
    assert jbn._batch_norm._train._cache_size() == before


@pytest.mark.several_devices
@pytest.mark.parametrize("axis_name", [None, "i"])
@pytest.mark.parametrize("sharded", ["x", "mask"])
def test_a_traced_train_flag_with_replicated_statistics(axis_name, sharded):
    """Both branches must vary over the same devices, which x, the mask and the axis name decide."""
    x, params, batch_stats, _ = cases.NAMES["mlp"].make()
    x = jnp.concatenate([x, x[:2]])
    mask = (jnp.arange(8) != 3)[:, None]
    devices = jax.make_mesh((4,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, whole = jax.sharding.PartitionSpec("i"), jax.sharding.PartitionSpec()
    if sharded == "mask":
        x = x[:2]

    def local(x, mask, flag):
        y, stats = jbn.batch_norm(x, params, batch_stats, train=flag, mask=mask, axis_name=axis_name)
        return y, jax.tree.map(lambda v: v[None], stats)

    specs = (rows if sharded == "x" else whole, rows, whole)
    mapped = jax.jit(jax.shard_map(local, mesh=devices, in_specs=specs, out_specs=rows))
    whole_x = x if sharded == "x" else jnp.tile(x, (4, 1))
    for flag in (True, False):
        y, _ = mapped(x, mask, flag)
        if axis_name is not None or not flag:
            expected, _ = jbn.batch_norm(whole_x, params, batch_stats, train=flag, mask=mask)
            close(y, expected, reduced=8)
        else:
            first, _ = jbn.batch_norm(whole_x[:2], params, batch_stats, train=True, mask=mask[:2])
            close(y[:2], first, reduced=8)


@pytest.mark.several_devices
@pytest.mark.parametrize("train", [True, False])
def test_explicit_axes_with_a_traced_flag(train):
    devices = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
    x = 1 + np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
    with jax.set_mesh(devices):
        params, batch_stats = jbn.init(4)
        x_sharded = jax.device_put(x, NamedSharding(devices, P("data", "model")))
        y, stats = jax.jit(lambda x, train: jbn.batch_norm(x, params, batch_stats, train=train))(
            x_sharded, jnp.asarray(train)
        )
    assert stats["mean"].sharding.spec == P("model")
    expected, _ = jbn.batch_norm(x, params, batch_stats, train=train)
    np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("train", [True, False])
def test_statistics_in_half_precision_are_promoted_either_way(train):
    x, params, batch_stats, _ = cases.NAMES["mlp"].make()
    half = {name: v.astype(jnp.bfloat16) for name, v in batch_stats.items()}
    y, stats = jax.jit(lambda flag: jbn.batch_norm(x, params, half, train=flag))(train)
    expected, _ = jbn.batch_norm(x, params, half, train=train)
    close(y, expected, reduced=6)
    assert {v.dtype for v in stats.values()} == {jnp.dtype("float32")}
