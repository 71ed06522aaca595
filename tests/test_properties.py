"""Property-based: any shape, axis, dtype, mask, scale of the data and momentum, against the oracle."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

import jbn
import reference
from tolerance import tolerance


@pytest.fixture(autouse=True)
def _programs_are_dropped():
    """Thousands of shapes leave gigabytes of compiled programs behind."""
    yield
    jax.clear_caches()


@st.composite
def calls(draw):
    """x, params, batch_stats, keyword arguments, and whether a channel may lack samples."""
    rank = draw(st.integers(2, 4))
    shape = tuple(draw(st.integers(1, 5)) for _ in range(rank))
    axis = draw(st.sampled_from([-1, 1, 0, -2, (0, -1)]))
    features = sorted({a % rank for a in ((axis,) if isinstance(axis, int) else axis)})
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    dtype = draw(st.sampled_from(["float32", "float32", "bfloat16", "float16"]))
    largest = 2 if dtype == "float16" else 5
    mean = draw(st.sampled_from([0, 1])) * 10.0 ** draw(st.integers(-3, largest))
    deviation = 10.0 ** draw(st.integers(-3, 2))
    x = jnp.asarray(mean + deviation * rng.standard_normal(shape)).astype(dtype)
    sizes = tuple(shape[a] for a in features)
    params = {
        name: jnp.asarray(rng.uniform(-2, 2, sizes), jnp.float32)
        for name in draw(st.sets(st.sampled_from(["scale", "bias"])))
    }
    kind = draw(st.sampled_from([None, "bool", "weights"]))
    mask = None
    if kind is not None:
        mask = rng.random([n if draw(st.booleans()) else 1 for n in shape]) < 0.7
        mask = jnp.asarray(mask * rng.uniform(0.5, 2, mask.shape) if kind == "weights" else mask)
        mask = mask.astype(jnp.float32) if kind == "weights" else mask
    options = {
        "momentum": draw(st.sampled_from([0.0, 0.5, 0.99, 1.0, None])),
        "running_variance": draw(st.sampled_from(["biased", "unbiased"])),
    }
    _, batch_stats = jbn.init(sizes, momentum=options["momentum"])
    return x, params, batch_stats, {"axis": axis, "mask": mask}, options


@pytest.mark.filterwarnings("ignore:.*one value per channel")
@hypothesis.given(calls())
def test_training_matches_the_oracle(call):
    x, params, batch_stats, kwargs, options = call
    y, updated = jbn.batch_norm(x, params, batch_stats, train=True, **kwargs, **options)
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    expected = reference.batch_norm(x, params, **kwargs)
    size = max([1.0, *(float(np.max(np.abs(v))) for v in params.values())])
    bound = max(1e-6, tolerance(x.dtype)["rtol"]) * (size + np.abs(expected))
    difference = np.abs(np.asarray(y, np.float64) - expected)
    assert (difference <= bound)[has_samples(x, **kwargs)].all()
    wanted = reference.update_running(batch_stats, x, **kwargs, **options)
    close_statistics(updated, wanted, reference.moments(x, **kwargs)[1])


def close_statistics(actual, wanted, var):
    """A mean is a sum of values of both signs: its error is relative to the deviation as well."""
    scales = {"mean": np.sqrt(var), "var": 0, "count": 0}
    for name, value in wanted.items():
        bound = 1e-6 * (np.abs(value) + scales[name])
        assert (np.abs(np.asarray(actual[name], np.float64) - value) <= bound).all(), name


def has_samples(x, axis, mask):
    """Where in x the channel has samples: elsewhere y is of no meaning but finite."""
    _, _, count = reference.moments(x, axis, mask)
    features = {a % x.ndim for a in np.atleast_1d(axis)}
    count = np.expand_dims(count, tuple(a for a in range(x.ndim) if a not in features))
    return np.broadcast_to(count > 0, x.shape)


@pytest.mark.filterwarnings("ignore:.*one value per channel")
@hypothesis.given(calls())
def test_gradients_match_the_oracle(call):
    x, params, batch_stats, kwargs, _ = call
    hypothesis.assume(x.dtype == jnp.float32)
    dy = jnp.asarray(np.random.default_rng(0).standard_normal(x.shape), jnp.float32)

    def output(x, params):
        return jbn.batch_norm(x, params, batch_stats, train=True, momentum=0.9, **kwargs)[0]

    dx, dparams = jax.jit(lambda x, p, dy: jax.vjp(output, x, p)[1](dy))(x, params, dy)
    expected, dexpected = reference.backward(dy, x, params, **kwargs)
    where = has_samples(x, **kwargs)
    # dx is a difference of terms as large as this: their rounding errors are what remains of it.
    _, var, _ = reference.moments(x, **kwargs)
    terms = np.max(1 / np.sqrt(var + 1e-5)) * max([1.0, *(np.max(np.abs(v)) for v in params.values())])
    assert (np.abs(dx - expected) <= 1e-5 * (terms * np.max(np.abs(dy)) + np.abs(expected)))[
        where
    ].all()
    assert np.isfinite(dx).all()
    for name, value in dparams.items():
        bound = 1e-5 * (1 + np.sum(np.abs(dy)) + np.abs(dexpected[name]))
        has = reference.moments(x, **kwargs)[2] > 0
        assert (np.abs(value - dexpected[name]) <= bound)[has].all()


@hypothesis.given(st.integers(0, 2**32 - 1), st.integers(2, 40), st.sampled_from([-1e4, 0.0, 3.0]))
def test_merged_devices_are_one_batch(seed, samples, mean):
    rng = np.random.default_rng(seed)
    x = jnp.asarray(mean + rng.standard_normal((4, samples, 3)), jnp.float32)
    mask = jnp.asarray(rng.random((4, samples, 1)) < rng.random((4, 1, 1)))
    batch_stats = jbn.init(3)[1]

    def local(x, mask):
        return jbn.batch_norm(x, {}, batch_stats, train=True, mask=mask, axis_name="i")

    y, stats = jax.vmap(local, axis_name="i")(x, mask)
    whole = {"axis": -1, "mask": np.asarray(mask)}
    expected = reference.batch_norm(x, {}, mask=whole["mask"])
    bound = 1e-6 * np.maximum(1, np.abs(expected))
    assert (np.abs(y - expected) <= bound)[has_samples(x, **whole)].all()
    wanted = reference.update_running(batch_stats, x, **whole)
    stats = jax.tree.map(lambda v: v[0], stats)
    close_statistics(stats, wanted, reference.moments(x, mask=whole["mask"])[1])
