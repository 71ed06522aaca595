"""Statistics of all samples on all devices, under every way to name an axis."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jbn
import reference

pytestmark = pytest.mark.several_devices
DEVICES = 4
PARAMS, BATCH_STATS = jbn.init(3)
PARAMS = {"scale": jnp.array([0.5, 2.0, -1.0]), "bias": jnp.array([1.0, 0.0, 3.0])}


def data(kind="bool"):
    """x, mask and cotangent: per-device means differ, and so do the masked counts; one has none."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((8, 5, 3)) + np.repeat(np.arange(4), 2)[:, None, None]
    mask = rng.random((8, 5, 1)) < 0.6
    mask[2:4] = False
    if kind == "weights":
        mask = mask * rng.uniform(0.5, 2.0, mask.shape)
    if kind == "none":
        mask = np.ones(mask.shape, bool)
    dy = rng.standard_normal(x.shape)
    return jnp.asarray(x, jnp.float32), jnp.asarray(mask), jnp.asarray(dy, jnp.float32)


def loss(params, x, mask, dy, **kwargs):
    y, stats = jbn.batch_norm(x, params, BATCH_STATS, train=True, mask=mask, **kwargs)
    return jnp.sum(y * dy), (y, stats)


def expected(x, mask, dy):
    dx, dparams = reference.backward(dy, x, PARAMS, mask=mask)
    y = reference.batch_norm(x, PARAMS, mask=mask)
    return dparams, dx, y, reference.update_running(BATCH_STATS, x, mask=mask)


def synced(x, params, **kwargs):
    return jbn.batch_norm(x, params, BATCH_STATS, train=True, axis_name="i", **kwargs)[0]


def close(actual, wanted):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-6), actual, wanted)


def split(array):
    return array.reshape(DEVICES, -1, *array.shape[1:])


def mesh(kind=AxisType.Auto, shape=(DEVICES,), names=("i",)):
    return jax.make_mesh(shape, names, axis_types=(kind,) * len(shape))


@pytest.mark.parametrize("kind", ["none", "bool", "weights"])
@pytest.mark.parametrize("transform", [jax.vmap, jax.pmap])
def test_mapped_axis(transform, kind):
    x, mask, dy = data(kind)
    step = jax.value_and_grad(functools.partial(loss, axis_name="i"), (0, 1), has_aux=True)
    (_, (y, stats)), (dparams, dx) = transform(step, axis_name="i", in_axes=(None, 0, 0, 0))(
        PARAMS, split(x), split(mask), split(dy)
    )
    dparams = jax.tree.map(lambda g: g.sum(0), dparams)
    stats = jax.tree.map(lambda s: s[1], stats)
    close((dparams, dx.reshape(x.shape), y.reshape(x.shape), stats), expected(x, mask, dy))


@pytest.mark.parametrize("kind", ["none", "bool", "weights"])
@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("where", ["outside", "inside"])
def test_shard_map(check_vma, where, kind):
    x, mask, dy = data(kind)
    rows, whole = P("i"), P()
    shard_map = functools.partial(
        jax.shard_map, mesh=mesh(), in_specs=(whole, rows, rows, rows), check_vma=check_vma
    )

    def local(params, *arrays):
        total, aux = loss(params, *arrays, axis_name="i")
        return jax.lax.psum(total, "i"), aux

    def gradient(params, *arrays):
        (dparams, dx), aux = jax.grad(functools.partial(loss, axis_name="i"), (0, 1), has_aux=True)(
            params, *arrays
        )
        if not check_vma:
            dparams = jax.lax.psum(dparams, "i")
        return (dparams, dx), aux

    if where == "outside":
        mapped = shard_map(local, out_specs=(whole, (rows, whole)))
        step = jax.grad(mapped, (0, 1), has_aux=True)
    else:
        step = shard_map(gradient, out_specs=((whole, rows), (rows, whole)))
    (dparams, dx), (y, stats) = jax.jit(step)(PARAMS, x, mask, dy)
    close((dparams, dx, y, stats), expected(x, mask, dy))


@pytest.mark.parametrize("spec", [P("a"), P("a", None, "b"), P(None, "a")], ids=str)
def test_the_programs_of_other_platforms_under_explicit_axes(spec, platform):
    x = jnp.asarray(1e4 + np.random.default_rng(0).standard_normal((8, 6, 4)), jnp.float32)
    devices = mesh(AxisType.Explicit, (2, 2), ("a", "b"))
    with jax.set_mesh(devices):
        m = jax.jit(jbn.moments)(jax.device_put(x, NamedSharding(devices, spec)))
    wanted = reference.moments(x)
    np.testing.assert_allclose(
        np.asarray(m.mean, np.float64) + np.asarray(m.remainder), wanted[0], rtol=1e-10
    )
    np.testing.assert_allclose(m.var, wanted[1], rtol=1e-6)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", [P("a"), P("a", None, "b"), P(None, None, "b"), P("a", "b")], ids=str)
def test_jit_over_sharded_arrays_without_a_name(kind, spec):
    x = jnp.pad(data()[0], ((0, 0), (0, 1), (0, 1)), mode="reflect")
    dy = jnp.cos(x)
    params, batch_stats = jbn.init(4)
    devices = mesh(kind, (2, 2), ("a", "b"))
    with jax.set_mesh(devices):
        put = functools.partial(jax.device_put, device=NamedSharding(devices, spec))
        x, dy = put(x), put(dy)

        @jax.jit
        def step(params, x, dy):
            y, vjp, stats = jax.vjp(
                lambda p, x: jbn.batch_norm(x, p, batch_stats, train=True), params, x, has_aux=True
            )
            return *vjp(dy), y, stats

        actual = jax.tree.map(np.asarray, step(params, x, dy))
    dx, dparams = reference.backward(dy, x, params)
    wanted = dparams, dx, reference.batch_norm(x, params), reference.update_running(batch_stats, x)
    close(actual, wanted)


@pytest.mark.parametrize("transform", ["vmap", "pmap", "checked", "unchecked"])
def test_groups_of_different_sizes(transform):
    x, mask, dy = data()
    groups = [[0, 2, 3], [1]]
    mask = mask.at[2].set(True)

    def step(x, mask, dy):
        dx, (y, stats) = jax.grad(
            lambda x: loss(PARAMS, x, mask, dy, axis_name="i", axis_index_groups=groups), has_aux=True
        )(x)
        return dx, y, stats

    if transform in ("vmap", "pmap"):
        mapped = getattr(jax, transform)(step, axis_name="i")
    else:

        def block(*arrays):
            return jax.tree.map(lambda v: v[None], step(*(a[0] for a in arrays)))

        mapped = jax.shard_map(
            block, mesh=mesh(), in_specs=P("i"), out_specs=P("i"), check_vma=transform == "checked"
        )
    dx, y, stats = jax.jit(mapped)(split(x), split(mask), split(dy))
    for group in groups:
        rows = [np.asarray(split(v))[group].reshape(-1, *v.shape[1:]) for v in (x, mask, dy)]
        _, wanted_dx, wanted_y, wanted_stats = expected(*rows)
        close(np.asarray(dx)[group].reshape(wanted_dx.shape), wanted_dx)
        close(np.asarray(y)[group].reshape(wanted_y.shape), wanted_y)
        for device in group:
            close(jax.tree.map(lambda s, d=device: s[d], stats), wanted_stats)


@pytest.mark.parametrize("names", ["i", "j", ("i", "j"), ["j", "i"]], ids=str)
def test_nested_axes_one_or_both_synchronized(names):
    x = data("none")[0].reshape(2, 4, 5, 3)

    def call(x):
        return jbn.batch_norm(x, PARAMS, BATCH_STATS, train=True, axis_name=names)[0]

    y = jax.vmap(jax.vmap(call, axis_name="j"), axis_name="i")(x)
    whole = {"i": (0, 2), "j": (1, 2)}.get(str(names), (0, 1, 2))
    axis = tuple(a for a in range(4) if a not in whole)
    params = jax.tree.map(np.asarray, PARAMS)
    wanted = reference.batch_norm(x, {}, axis=axis) * params["scale"] + params["bias"]
    close(y, wanted)


def test_one_sample_per_device_with_the_feature_axis_alone():
    x = data("none")[0].reshape(-1, 3)
    y = jax.vmap(lambda x: synced(x, PARAMS), axis_name="i")(x)
    close(y, reference.batch_norm(x, PARAMS))


@pytest.mark.parametrize("mean", [1e3, 1e5, -1e5])
def test_means_large_against_the_deviation_stay_exact(mean):
    x = jnp.asarray(mean + np.random.default_rng(0).standard_normal((4, 64, 3)), jnp.float32)
    y = jax.vmap(
        lambda x: jbn.batch_norm(x, {}, BATCH_STATS, train=True, axis_name="i")[0], axis_name="i"
    )(x)
    wanted = reference.batch_norm(x, {})
    assert np.max(np.abs(y - wanted) / np.maximum(1, np.abs(wanted))) <= 1e-6


def test_float64_in_strict_mode(x64):
    x = jnp.asarray(1e8 + np.random.default_rng(0).standard_normal((4, 64, 3)))
    stats = jbn.init(3, dtype=jnp.float64)[1]

    def local(x):
        return jbn.batch_norm(x, {}, stats, train=True, axis_name="i")[0]

    y = jax.vmap(local, axis_name="i")(x)
    assert np.max(np.abs(y - reference.batch_norm(np.asarray(x) - 1e8, {}))) < 1e-12


@pytest.mark.parametrize("value", [100.1, 1.234567e7, -3.3e-3])
@pytest.mark.parametrize("transform", [jax.vmap, jax.pmap])
def test_one_value_on_all_devices_gives_exactly_bias(transform, value):
    x = jnp.full((7, 3, 3), value, jnp.float32)
    y = transform(lambda x: synced(x, PARAMS), axis_name="i")(x)
    np.testing.assert_array_equal(y, np.broadcast_to(PARAMS["bias"], x.shape))


def test_inference_and_initialization_do_not_touch_the_axis():
    x = data("none")[0]
    y, _ = jbn.batch_norm(x, PARAMS, BATCH_STATS, train=False, axis_name="nowhere")
    assert y.shape == x.shape


def test_second_derivatives_through_a_named_axis():
    x, mask, dy = data("weights")

    def sharded(x):
        def local(x, mask, dy):
            return jnp.sum(jnp.sin(synced(x, PARAMS, mask=mask)) * dy)

        return jnp.sum(jax.vmap(local, axis_name="i")(split(x), split(mask), split(dy)))

    def plain(x):
        return jnp.sum(jnp.sin(reference.plain_batch_norm(x, PARAMS, mask=mask)) * dy)

    def product(f):
        return jax.jit(lambda x, v: jax.jvp(jax.grad(f), (x,), (v,))[1])(x, dy)

    close(product(sharded), product(plain))
