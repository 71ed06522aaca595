"""Merged moments: whatever the first device holds, and whatever overflows on the way."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jbn
import reference
from jbn import _across_devices

RNG = np.random.default_rng(0)
NORMAL = RNG.standard_normal((4, 64, 3))


@functools.partial(jax.jit, static_argnames="groups")
def merged(x, mask=None, groups=None):
    def local(x, mask):
        m = jbn.moments(x, mask=mask, axis_name="i", axis_index_groups=groups)
        return jbn.normalize(x, m), m

    return jax.vmap(local, axis_name="i", in_axes=(0, None if mask is None else 0))(x, mask)


@pytest.fixture(scope="module", params=[4, 3], ids=["each is told all", "in two sums"])
def way(request):
    """Of four devices."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_across_devices, "_FEW_DEVICES", request.param)
        jax.clear_caches()
        yield
    jax.clear_caches()


def check(x, mask=None):
    x = x.astype(np.float32)
    y, m = merged(x, mask)
    expected = reference.batch_norm(x, {}, mask=mask)
    counts = np.ones_like(x, bool) if mask is None else np.broadcast_to(mask, x.shape)
    assert np.max(np.where(counts, np.abs(y - expected) / np.maximum(1, np.abs(expected)), 0)) <= 1e-6
    return m


DATA = {
    "the first device an outlier": NORMAL + 1e6 * (np.arange(4) == 0)[:, None, None],
    "the last device an outlier": 1e4 + NORMAL + 1e6 * (np.arange(4) == 3)[:, None, None],
    "means that cancel": NORMAL + np.array([1e5, -1e5, 1e5, -1e5])[:, None, None],
    "one sample an outlier": NORMAL + 1e6 * (np.arange(64) == 5)[None, :, None],
    "a deviation of a few roundings": 1e6 + NORMAL,
}


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("name", DATA)
def test_whatever_the_devices_hold(name):
    check(DATA[name])


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("empty", [0, 2])
@pytest.mark.parametrize("mean", [0, 1e5])
def test_a_device_without_samples_has_no_say(empty, mean):
    mask = np.broadcast_to((np.arange(4) != empty)[:, None, None], (4, 64, 1))
    x = mean + NORMAL
    x[empty] = np.nan
    m = check(x, mask)
    np.testing.assert_array_equal(m.count, 192)


@pytest.mark.usefixtures("way")
def test_one_value_on_the_devices_that_have_samples():
    """The anchor is then the mean of the first device, which has none here, passed on as 0."""
    mask = np.broadcast_to((np.arange(4) > 0)[:, None, None], (4, 64, 1))
    y, m = merged(np.full((4, 64, 3), 100.1, np.float32), mask)
    np.testing.assert_array_equal(m.var, 0)
    np.testing.assert_array_equal(y, 0)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("value", [100.1, 1.234567e7, 3.3e-3])
def test_each_group_has_a_first_device_of_its_own(value):
    """One value in one group, and another in the other: both are constant."""
    x = np.full((4, 7, 3), value, np.float32)
    x[1::2] *= -3
    y, m = merged(x, groups=((0, 2), (1, 3)))
    np.testing.assert_array_equal(m.var, 0)
    np.testing.assert_array_equal(y, 0)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("value", [1e30, 3e38])
def test_what_overflows_between_devices_is_seen(value):
    x = NORMAL.astype(np.float32)
    x[0, :, 1], x[1, :, 1] = value, -value
    y, m = merged(x)
    assert np.isnan(m.var[:, 1]).all()
    assert np.isnan(y[..., 1]).all()
    expected = reference.batch_norm(x[..., ::2], {})
    np.testing.assert_allclose(y[..., ::2], expected, atol=1e-6)


@pytest.mark.usefixtures("way")
def test_complex_values():
    x = (1e4 + NORMAL + 1j * (NORMAL[::-1] - 3)).astype(np.complex64)
    y, _ = merged(x)
    expected = reference.batch_norm(x, {})
    assert np.max(np.abs(y - expected) / np.maximum(1, np.abs(expected))) <= 1e-6


def test_complex_gradients_over_devices():
    x = (NORMAL + 1j * NORMAL[::-1]).astype(np.complex64)
    dy = np.cos(np.arange(x.size, dtype=np.float32)).reshape(x.shape) * (1 + 0.5j)
    dy = dy.astype(np.complex64)

    def whole(x):
        return jbn.batch_norm(x, {}, jbn.init(3)[1], train=True)[0]

    def local(x):
        return jbn.batch_norm(x, {}, jbn.init(3)[1], train=True, axis_name="i")[0]

    (actual,) = jax.vjp(jax.vmap(local, axis_name="i"), x)[1](dy)
    (expected,) = jax.vjp(whole, x)[1](dy)
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_derivative_of_the_count_and_the_rest_with_respect_to_weights():
    weights = RNG.uniform(0.5, 2, (4, 64, 1)).astype(np.float32)
    x = NORMAL.astype(np.float32)
    scales = jnp.arange(1.0, 4)

    def scalar(m):
        return jnp.sum(scales * m.count + jnp.sin(m.mean) + m.var**2)

    def local(weights, x):
        return scalar(jbn.moments(x, mask=weights, axis_name="i"))

    def devices(weights):
        return jax.vmap(local, axis_name="i")(weights, x)[2]

    expected = jax.grad(lambda w: scalar(jbn.moments(x, mask=w)))(weights)
    np.testing.assert_allclose(jax.jit(jax.grad(devices))(weights), expected, atol=1e-5)
    _, tangent = jax.jit(lambda w: jax.jvp(devices, (w,), (jnp.cos(w),)))(weights)
    np.testing.assert_allclose(tangent, np.sum(expected * np.cos(weights)), rtol=1e-5)


@pytest.mark.parametrize("mean", [0, 1e5])
def test_the_analytic_backward_pass_sums_over_devices(mean):
    x = (mean + NORMAL).astype(np.float32)
    dy = RNG.standard_normal(x.shape).astype(np.float32)
    params = {"scale": np.array([1, -2, 0.5], np.float32), "bias": np.zeros(3, np.float32)}

    def local(x, dy):
        m = jbn.moments(x, axis_name="i")
        return jbn.batch_norm_backward(dy, x, params, m, axis_name="i")

    dx, dparams = jax.vmap(local, axis_name="i")(x, dy)
    expected_dx, expected = reference.backward(dy, x, params)
    np.testing.assert_allclose(dx, expected_dx, atol=2e-6)
    for name in params:
        np.testing.assert_allclose(dparams[name].sum(0), expected[name], atol=2e-5)


def test_dtypes_of_the_merged_moments():
    m = merged(jnp.asarray(NORMAL, jnp.bfloat16))[1]
    assert {v.dtype for v in jax.tree.leaves(m)} == {jnp.dtype("float32")}
