"""Exact in every layout, under every mask, on the way of each platform."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jbn
import reference

# Small ones, that XLA sums one value after the other, and large ones; every rank and place of the axis.
LAYOUTS = {
    (5,): 0,
    (7, 3): 1,
    (576, 1): 1,
    (24, 24, 1): 2,
    (3, 24, 24): 0,
    (2, 3, 16, 16): 1,
    (1, 28, 28, 1): 3,
    (1, 1, 3, 8, 3, 8): 2,
    (90, 91, 1): 2,
    (8192, 2): 1,
    (16, 3, 64, 64): 1,
    (65536, 3): 1,
}
FEW = [(2, 3, 16, 16), (8192, 2)]
BOUND = 1e-6


def moments_of_deviation(mean, deviation):
    return lambda rng, shape: mean + deviation * rng.standard_normal(shape)


def adjacent(rng, shape):
    """Two neighbours among the float32 numbers: the deviation is half a rounding of the mean."""
    low = np.float32(rng.uniform(1, 100))
    return np.where(rng.random(shape) < 0.3, low, np.nextafter(low, np.float32(200)))


DATA = {
    "N(0, 1)": moments_of_deviation(0, 1),
    "N(1, 1)": moments_of_deviation(1, 1),
    "N(7, 1)": moments_of_deviation(7, 1),
    "N(1e3, 1e-2)": moments_of_deviation(1e3, 1e-2),
    "N(1e5, 1)": moments_of_deviation(1e5, 1),
    "N(1e7, 1)": moments_of_deviation(1e7, 1),
    "large": moments_of_deviation(1e16, 1e15),
    "small": moments_of_deviation(1e-14, 1e-15),
    "0 and 0.9": lambda rng, shape: 0.9 * (rng.random(shape) < 0.5),
    "adjacent": adjacent,
    "constant": lambda rng, shape: np.full(shape, rng.uniform(-1e6, 1e6)),
    "sorted": lambda rng, shape: 100 + np.sort(rng.standard_normal(shape), axis=0),
    "one outlier": lambda rng, shape: (
        rng.standard_normal(shape) + 1e6 * (np.indices(shape).sum(0) == 3)
    ),
    "first unlike the rest": lambda rng, shape: (
        rng.standard_normal(shape) + 1e5 * (np.indices(shape)[0] == 0)
    ),
    "every 32nd unlike the rest": lambda rng, shape: (
        rng.standard_normal(shape) + 1e5 * (np.indices(shape)[0] % 32 == 0)
    ),
}


def masks(rng, shape, axis):
    row = tuple(1 if a == axis else n for a, n in enumerate(shape))
    return {
        "none": None,
        "all true": np.ones(row, bool),
        "bool": rng.random(row) < 0.6,
        "per value": rng.random(shape) < 0.6,
        "weights": rng.uniform(0, 3, row).astype(np.float32),
    }


@functools.partial(jax.jit, static_argnames="axis")
def normalized(x, mask, shift, axis):
    m = jbn.moments(x, axis=axis, mask=mask, shift=shift)
    return jbn.normalize(x, m, axis=axis), m


def check(shape, axis, kinds, names=tuple(DATA), shift=None):
    rng = np.random.default_rng(0)
    for kind, mask in masks(rng, shape, axis).items():
        if kind not in kinds:
            continue
        for name in names:
            x = np.asarray(DATA[name](rng, shape), np.float32)
            y, m = normalized(x, mask, shift, axis)
            counts = np.broadcast_to(True if mask is None else mask > 0, shape)
            r = reference.batch_norm(x, {}, axis=axis, mask=mask)
            error = np.where(counts, np.abs(y - r) / np.maximum(1, np.abs(r)), 0)
            assert np.max(error) <= BOUND, (kind, name, np.max(error))
            if name == "constant":
                assert np.all(np.where(counts, y, 0) == 0), kind
                np.testing.assert_array_equal(np.asarray(m.var), 0)


@pytest.mark.parametrize("shape", LAYOUTS, ids=str)
def test_every_layout(shape):
    check(shape, LAYOUTS[shape], ["none", "bool", "weights"])


@pytest.mark.parametrize("shape", FEW, ids=str)
def test_the_way_of_each_platform(shape, platform):
    del platform
    check(shape, LAYOUTS[shape], ["none", "per value", "weights"])


def test_whatever_is_passed_as_known_of_the_mean(platform):
    del platform
    names = ["N(0, 1)", "N(1e5, 1)", "constant", "adjacent"]
    for shift in (0.7, 1e5, 1e30, np.inf, np.nan):
        check((1000, 5), 1, ["none", "bool"], names, jnp.full(5, shift, jnp.float32))


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2**20, 8), (2**22, 1), (2**20, 64)], ids=str)
def test_millions_of_samples(shape):
    check(shape, 1, ["none", "all true", "weights"], ["N(1, 1)", "N(1e5, 1)", "0 and 0.9"])


@pytest.mark.parametrize("shape", [(24, 24, 2), (16, 64, 64, 3)], ids=str)
@pytest.mark.parametrize("means", [(0, 1e5), (1e5, 3), (0, 0)], ids=str)
def test_complex_with_a_nearly_constant_part(shape, means):
    rng = np.random.default_rng(0)
    real, imag = means
    x = real + rng.standard_normal(shape) + 1j * (imag + 1e-3 * rng.standard_normal(shape))
    x = x.astype(np.complex64)
    y, _ = normalized(x, None, None, len(shape) - 1)
    r = reference.batch_norm(x, {})
    assert np.max(np.abs(y - r) / np.maximum(1, np.abs(r))) <= BOUND


def test_channels_of_every_kind_side_by_side(platform):
    """One that is far from zero, or constant, changes nothing about the others."""
    del platform
    rng = np.random.default_rng(0)
    normal = rng.standard_normal((1000, 6))
    x = (normal * [1, 1, 0, 1e-3, 1e6, 0] + [0, 1e4, 7.7, 5, 0, 0]).astype(np.float32)
    for mask in (None, rng.random((1000, 1)) < 0.6):
        y, m = normalized(x, mask, None, 1)
        r = reference.batch_norm(x, {}, mask=mask)
        counts = np.ones((1000, 1), bool) if mask is None else mask
        assert np.max(np.where(counts, np.abs(y - r) / np.maximum(1, np.abs(r)), 0)) <= BOUND
        assert m.var[2] == m.var[5] == 0


def test_one_repeated_value_gives_exactly_bias(platform):
    del platform
    params = {"scale": jnp.array([3.0, -2.0]), "bias": jnp.array([0.3, -0.7])}
    for samples in (2, 3, 7, 1000):
        for mask in (None, (np.arange(samples) % 2 == 0)[:, None]):
            for value in (100.1, 1.234567e7, 0.1, -3.7e-5, 6.02e17):
                x = np.full((samples, 2), value, np.float32)
                y, _ = jbn.batch_norm(x, params, jbn.init(2)[1], train=True, mask=mask)
                np.testing.assert_array_equal(y, np.broadcast_to(params["bias"], x.shape))


def test_what_is_not_finite_stays_in_its_channel(platform):
    del platform
    x = np.random.default_rng(0).standard_normal((300, 4)).astype(np.float32)
    x[5, 0], x[6, 1], x[7, 2] = np.nan, np.inf, 1e38
    y, m = normalized(x, None, None, 1)
    assert np.isnan(m.var[:3]).all()
    np.testing.assert_allclose(y[:, 3], reference.batch_norm(x[:, 3:], {})[:, 0], atol=1e-6)


def test_any_mask_with_a_mean_whose_square_overflows(platform):
    del platform
    rng = np.random.default_rng(0)
    x = (3e19 + 1e17 * rng.standard_normal((300, 4))).astype(np.float32)
    mask = rng.random((300, 1)) < 0.6
    y, _ = normalized(x, mask, None, 1)
    r = reference.batch_norm(x, {}, mask=mask)
    assert np.max(np.where(mask, np.abs(y - r) / np.maximum(1, np.abs(r)), 0)) <= BOUND
