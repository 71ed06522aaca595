"""The promise on the README's first line, on the default path, through every way to call it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jbn
import reference

# mean, deviation
ROWS = {
    "N(0, 1)": (0, 1),
    "N(2, 1)": (2, 1),
    "N(7, 1)": (7, 1),
    "N(1e2, 1)": (1e2, 1),
    "N(1e3, 1)": (1e3, 1),
    "N(1e4, 1)": (1e4, 1),
    "N(1e5, 1)": (1e5, 1),
    "N(1e3, 1e-2)": (1e3, 1e-2),
    "N(1e-3, 1e-6)": (1e-3, 1e-6),
    "constant 100.1": (100.1, 0),
    "constant 1.234567e7": (1.234567e7, 0),
}
SHAPES = [(64, 8, 8, 32), (7, 32), (300, 7, 32)]
PARAMS, BATCH_STATS = jbn.init(32)


def sample(row, shape, seed=0):
    mean, deviation = ROWS[row]
    return (mean + deviation * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def functional(x, **kwargs):
    return jbn.batch_norm(x, PARAMS, BATCH_STATS, train=True, **kwargs)[0]


def linen(x, **kwargs):
    layer = jbn.linen.BatchNorm(use_running_average=False)
    variables = {"params": PARAMS, "batch_stats": BATCH_STATS}
    return layer.apply(variables, x, mutable=["batch_stats"], **kwargs)[0]


def nnx_layer(x, **kwargs):
    return jbn.nnx.BatchNorm(32, rngs=nnx.Rngs(0))(x, **kwargs)


def composed(x, **kwargs):
    return jbn.normalize(x, jbn.moments(x, **kwargs), PARAMS)


WAYS = {"functional": functional, "linen": linen, "nnx": nnx_layer, "pieces": composed}


@functools.cache
def call(way, compile_whole, masked):
    def run(x):
        mask = jnp.ones((*x.shape[:-1], 1), bool) if masked else None
        return WAYS[way](x, mask=mask)

    return jax.jit(run) if compile_whole else run


def error(y, expected):
    return np.max(np.abs(np.asarray(y, np.float64) - expected) / np.maximum(1, np.abs(expected)))


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_output(row, shape):
    x = sample(row, shape)
    expected = reference.batch_norm(x, {})
    for way in WAYS:
        for compile_whole in (True, False):
            for masked in (False, True) if way == "functional" else (False,):
                y = call(way, compile_whole, masked)(x)
                assert error(y, expected) <= 1e-6, (way, compile_whole, masked)
                if ROWS[row][1] == 0:
                    np.testing.assert_array_equal(y, 0)


@pytest.mark.parametrize("value", [100.1, 1.234567e7, 0.1, -3.7e-5, 6.02e23])
@pytest.mark.parametrize("samples", [2, 3, 7, 1000, 4097])
def test_one_repeated_value_gives_exactly_bias(value, samples):
    x = np.full((samples, 2), value, np.float32)
    params = {"scale": jnp.array([3.0, -2.0]), "bias": jnp.array([0.3, -0.7])}
    y, _ = jbn.batch_norm(x, params, jbn.init(2)[1], train=True)
    np.testing.assert_array_equal(y, np.broadcast_to(params["bias"], x.shape))


def check_gradients(x, dy, axis=-1, mask=None):
    """Each channel by itself: against the norm of what is summed for it, or the largest of its dy."""
    rng = np.random.default_rng(1)
    features = x.shape[axis]
    params = {"scale": rng.uniform(0.5, 2, features), "bias": np.zeros(features)}
    params = {name: v.astype(np.float32) for name, v in params.items()}
    dx, dparams = gradient(x, params, dy, mask, axis)
    expected, expected_dparams = reference.backward(dy, x, params, axis=axis, mask=mask)
    reduced = tuple(a for a in range(x.ndim) if a != axis % x.ndim)
    _, var, _ = reference.moments(x, axis, mask)
    largest = params["scale"] / np.sqrt(var + 1e-5) * np.abs(dy).max(reduced)
    assert np.all(np.abs(dx - expected).max(reduced) <= 2e-6 * largest)
    for name, term in (("scale", dy * reference.batch_norm(x, {}, axis, mask=mask)), ("bias", dy)):
        error = np.abs(dparams[name] - expected_dparams[name])
        size = np.maximum(np.sqrt(np.sum(term**2, reduced)), np.abs(expected_dparams[name]))
        assert np.all(error <= 2e-6 * size), name


@functools.partial(jax.jit, static_argnames="axis")
def gradient(x, params, dy, mask=None, axis=-1):
    def output(x, params):
        _, stats = jbn.init(x.shape[axis])
        return jbn.batch_norm(x, params, stats, train=True, axis=axis, mask=mask)[0]

    return jax.vjp(output, x, params)[1](dy)


@pytest.mark.parametrize("row", [row for row in ROWS if ROWS[row][1]])
def test_gradients(row):
    x = sample(row, SHAPES[0])
    dy = np.random.default_rng(1).standard_normal(x.shape).astype(np.float32)
    check_gradients(x, dy)


@pytest.mark.parametrize(
    "shape", [(576, 1), (24, 24, 1), (2, 3, 16, 16), (8192, 2), (65536, 3)], ids=str
)
def test_gradients_in_every_layout_under_a_cotangent_with_a_mean(shape):
    axis = 1 if len(shape) == 4 else -1
    rng = np.random.default_rng(0)
    mask = rng.random((*shape[:1], *(1 for _ in shape[1:]))) < 0.6
    for mean, deviation in [(0.5, 1), (1e5, 1), (1e16, 1e15)]:
        for dy_mean in (1, 64):
            x = (mean + deviation * rng.standard_normal(shape)).astype(np.float32)
            dy = (dy_mean + rng.standard_normal(shape)).astype(np.float32)
            check_gradients(x, dy, axis)
            check_gradients(x, dy, axis, mask)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [2**20, 2**22])
def test_gradients_of_millions_of_samples(rows):
    rng = np.random.default_rng(0)
    x, dy = (v + rng.standard_normal((rows, 3)).astype(np.float32) for v in (0.5, 1))
    check_gradients(x, dy)


@pytest.mark.parametrize("deviation", [1e13, 1e15, 1e17])
def test_gradients_where_the_cube_of_a_deviation_overflows(deviation):
    x = sample("N(0, 1)", (300, 4)) * np.float32(deviation)
    check_gradients(x, sample("N(2, 1)", (300, 4), seed=1))


@pytest.mark.parametrize("epsilon", [1e-25, 1e-30, 1e-37])
def test_gradients_of_a_constant_channel_under_the_smallest_epsilon(epsilon):
    x, dy = sample("constant 100.1", (40, 4)), sample("N(0, 1)", (40, 4))
    params, stats = jbn.init(4)

    def output(x, params):
        return jbn.batch_norm(x, params, stats, train=True, epsilon=epsilon)[0]

    dx, dparams = jax.vjp(output, x, params)[1](dy)
    assert all(np.isfinite(v).all() for v in (dx, *dparams.values()))


@pytest.mark.parametrize("row", ["constant 100.1", "constant 1.234567e7"])
def test_gradients_of_a_constant_channel_are_finite(row):
    x = sample(row, (40, 32))
    dx, dparams = gradient(x, PARAMS, np.cos(np.arange(x.size, dtype=np.float32)).reshape(x.shape))
    assert all(np.isfinite(v).all() for v in (dx, *dparams.values()))


def units_in_the_last_place(y, expected):
    """Distance from the correctly rounded result, in representable numbers of the dtype of y."""
    dtype = y.dtype
    rounded = jnp.asarray(expected, jnp.float32).astype(dtype)

    def ordered(v):
        bits = np.asarray(v).view(np.int16).astype(np.int32)
        return np.where(bits < 0, -(bits & 0x7FFF), bits)

    return np.max(np.abs(ordered(y) - ordered(rounded)))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("mean", [0, 3, 100])
def test_half_precision_is_within_one_unit_of_the_correctly_rounded_result(dtype, mean):
    x = jnp.asarray(mean + np.random.default_rng(0).standard_normal((512, 32))).astype(dtype)
    wide = np.asarray(x, np.float32)
    y = functional(x)
    assert y.dtype == x.dtype
    assert units_in_the_last_place(y, reference.batch_norm(wide, {})) <= 1
    params = {"scale": jnp.full(32, 1.7), "bias": jnp.full(32, 0.4)}
    y, _ = jbn.batch_norm(x, params, BATCH_STATS, train=True)
    expected = reference.batch_norm(wide, params)
    # Where scale * x_hat and bias cancel, one float32 rounding of either is many units of y.
    expected = np.where(np.abs(expected) < 1e-3, np.asarray(y, np.float64), expected)
    assert units_in_the_last_place(y, expected) <= 1


def test_float16_near_its_largest_value():
    x = jnp.asarray(np.random.default_rng(0).choice([-6e4, 5.9e4, 6.1e4], (512, 32))).astype(
        jnp.float16
    )
    y, stats = jbn.batch_norm(x, PARAMS, BATCH_STATS, train=True)
    assert units_in_the_last_place(y, reference.batch_norm(np.asarray(x, np.float32), {})) <= 1
    assert np.isfinite(stats["var"]).all()


def adversarial():
    rng = np.random.default_rng(0)
    normal = rng.standard_normal((4096, 32))
    index = np.arange(4096)[:, None]
    shards = np.repeat(np.arange(8) * 1e3, 512)[:, None]
    return {
        "sorted": np.sort(normal, 0),
        "one outlier of 1e6": np.where(index == 1234, 1e6, normal),
        "first sample unlike the rest": np.where(index == 0, -1e5, 1e3 + normal),
        "first rows unlike the rest": np.where(index < 64, 1e5, normal),
        "alternating signs": np.where(index % 2, 1e4, -1e4) + normal,
        "subnormal": 1e-40 * normal,
        "mean differs from shard to shard": shards + normal,
        "channels of all scales": 10.0 ** np.linspace(-10, 10, 32) * (3 + normal),
    }


@pytest.mark.parametrize("layout", adversarial())
def test_adversarial_layouts(layout):
    x = adversarial()[layout].astype(np.float32)
    assert error(call("functional", True, False)(x), reference.batch_norm(x, {})) <= 1e-6


@pytest.mark.parametrize("row", ["N(1e3, 1)", "N(1e5, 1)", "N(7, 1)", "constant 100.1"])
def test_inside_a_scan(row):
    """The loop fuses otherwise than straight code does; the statistics are carried."""
    xs = np.stack([sample(row, (64, 32), seed) for seed in range(3)])

    def step(stats, x):
        y, stats = jbn.batch_norm(x, PARAMS, stats, train=True)
        return stats, y

    _, ys = jax.lax.scan(step, BATCH_STATS, xs)
    for x, y in zip(xs, ys, strict=True):
        assert error(y, reference.batch_norm(x, {})) <= 1e-6


@pytest.mark.parametrize("row", ["N(0, 1)", "N(1e5, 1)", "constant 1.234567e7"])
def test_under_vmap(row):
    """Under vmap a branch becomes a select, and both of its sides are computed."""
    xs = np.stack([sample(row, (64, 32), seed) for seed in range(3)])
    ys = jax.vmap(functional)(xs)
    for x, y in zip(xs, ys, strict=True):
        assert error(y, reference.batch_norm(x, {})) <= 1e-6


@pytest.mark.parametrize("mean", [3e6, 1e7])
def test_a_mean_of_millions_of_deviations_over_a_million_samples(mean):
    """A deviation is a few roundings of the mean here, and a sample no good shift instead of it."""
    x = (mean + np.random.default_rng(0).standard_normal((2**20, 4))).astype(np.float32)
    y, _ = jbn.batch_norm(jnp.asarray(x), {}, jbn.init(4)[1], train=True)
    assert error(y, reference.batch_norm(x, {})) <= 1e-6
