"""`jbn.batch_norm` and `jbn.init` against the oracle, and the promises of their docstrings."""

import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cases
import jbn
import reference
from cases import CASES, DTYPES
from tolerance import tolerance

by_name = pytest.mark.parametrize("case", CASES + DTYPES, ids=lambda case: case.name)


def close(actual, expected, dtype="float32", reduced=1):
    np.testing.assert_allclose(np.asarray(actual, np.complex128), expected, **tolerance(dtype, reduced))


def test_every_public_name_is_in_the_registry():
    public = {name for name in vars(jbn) if not name.startswith("_") and name != "ops"}
    entered = {name.split(",")[0] for name in cases.FUNCTIONS} | set(cases.OTHER_PUBLIC_NAMES)
    assert public == entered


@by_name
def test_training_matches_the_oracle(case):
    x, params, batch_stats, kwargs = case.make()
    y, updated = jbn.batch_norm(x, params, batch_stats, train=True, **kwargs, **case.running())
    floating = jnp.issubdtype(x.dtype, jnp.inexact)
    assert y.dtype == (x.dtype if floating else jnp.float32)
    oracle = {"axis": case.axis, "mask": kwargs.get("mask")}
    expected = reference.batch_norm(x, params, epsilon=case.epsilon, **oracle)
    close(y, expected, y.dtype, case.reduced)
    expected = reference.update_running(batch_stats, x, **oracle, **case.running())
    assert set(updated) == set(expected)
    for name in expected:
        assert updated[name].dtype == batch_stats[name].dtype
        close(updated[name], expected[name], "float32", case.reduced)


@by_name
def test_inference_matches_the_oracle(case):
    x, params, batch_stats, kwargs = case.make()
    y, unchanged = jbn.batch_norm(x, params, batch_stats, train=False, **kwargs, **case.running())
    expected = reference.normalize(
        x, batch_stats["mean"], batch_stats["var"], params, case.axis, case.epsilon
    )
    close(y, expected, y.dtype)
    jax.tree.map(np.testing.assert_array_equal, unchanged, batch_stats)


@pytest.mark.parametrize("axis", [-1, 1, (1, 2), (-2, -1)], ids=str)
def test_float64_is_exact_to_its_own_precision(x64, axis):
    rng = np.random.default_rng(0)
    x = jnp.asarray(1e8 + rng.standard_normal((16, 4, 3)))
    assert x.dtype == jnp.float64
    features = sorted(a % 3 for a in ((axis,) if isinstance(axis, int) else axis))
    shape = tuple(x.shape[a] for a in features)
    _, stats = jbn.init(shape, dtype=jnp.float64)
    y, updated = jbn.batch_norm(x, {}, stats, train=True, axis=axis)
    assert y.dtype == updated["mean"].dtype == jnp.float64
    with np.errstate(all="raise"):
        exact = np.asarray(x, np.longdouble) - 1e8
        reduced = tuple(a for a in range(3) if a not in features)
        mean = exact.mean(reduced, keepdims=True)
        var = ((exact - mean) ** 2).mean(reduced, keepdims=True)
        expected = (exact - mean) / np.sqrt(var + 1e-5)
    assert np.max(np.abs(np.asarray(y, np.longdouble) - expected)) < 1e-14


def test_a_wider_output_dtype_is_computed_in_it(x64):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((9, 3)), jnp.float32)
    y, _ = jbn.batch_norm(x, {}, jbn.init(3)[1], train=True, dtype=jnp.float64)
    assert y.dtype == jnp.float64
    np.testing.assert_allclose(y, reference.batch_norm(x, {}), rtol=1e-13, atol=1e-13)


def test_output_dtype_can_be_chosen():
    x, params, batch_stats, _ = cases.NAMES["mlp"].make()
    for train in (True, False):
        y, stats = jbn.batch_norm(x, params, batch_stats, train=train, dtype=jnp.bfloat16)
        assert y.dtype == jnp.bfloat16
        assert stats["mean"].dtype == jnp.float32


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "int32"])
@pytest.mark.parametrize("momentum", [0.9, None])
def test_running_statistics_fit_a_scan_carry(dtype, momentum):
    params, batch_stats = jbn.init(3, momentum=momentum)
    xs = jnp.asarray(10 * np.random.default_rng(0).standard_normal((4, 5, 3))).astype(dtype)

    def step(stats, x):
        return jbn.batch_norm(x, params, stats, train=True, momentum=momentum)[::-1]

    carried, _ = jax.lax.scan(step, batch_stats, xs)
    expected = batch_stats
    for x in xs:
        expected = reference.update_running(expected, x, momentum=momentum)
    for name in expected:
        close(carried[name], expected[name], reduced=5)


def test_cumulative_average_is_the_plain_mean_over_batches():
    params, batch_stats = jbn.init(3, momentum=None)
    xs = np.random.default_rng(0).standard_normal((5, 8, 3)).astype(np.float32)
    for x in xs:
        _, batch_stats = jbn.batch_norm(x, params, batch_stats, train=True, momentum=None)
    np.testing.assert_array_equal(batch_stats["count"], [5, 5, 5])
    close(batch_stats["mean"], xs.mean(1, dtype=np.float64).mean(0), reduced=40)
    close(batch_stats["var"], xs.var(1, dtype=np.float64).mean(0), reduced=40)


def test_no_gradient_flows_through_the_running_statistics():
    x, params, batch_stats, _ = cases.NAMES["mlp"].make()

    def loss(x, batch_stats):
        stats = jbn.batch_norm(x, params, batch_stats, train=True)[1]
        return jnp.sum(stats["mean"] + stats["var"])

    for gradient in jax.tree.leaves(jax.grad(loss, (0, 1))(x, batch_stats)):
        np.testing.assert_array_equal(gradient, 0)


def test_training_output_does_not_depend_on_the_running_statistics():
    x, params, batch_stats, _ = cases.NAMES["nhwc"].make()
    expected, _ = jbn.batch_norm(x, params, batch_stats, train=True)
    for mean in (-1e3, jnp.nan):
        stats = {**batch_stats, "mean": jnp.full(4, mean, jnp.float32)}
        y, _ = jbn.batch_norm(x, params, stats, train=True)
        np.testing.assert_array_equal(y, expected)


def test_arguments_are_left_as_they_were():
    x, params, batch_stats, _ = cases.NAMES["mlp"].make()
    x, params, batch_stats = jax.tree.map(np.asarray, (x, params, batch_stats))
    before = jax.tree.map(np.copy, (x, params, batch_stats))
    _, updated = jbn.batch_norm(x, params, batch_stats, train=True)
    jax.tree.map(np.testing.assert_array_equal, (x, params, batch_stats), before)
    assert updated is not batch_stats
    _, updated = jbn.batch_norm(x, params, batch_stats, train=False)
    assert updated is not batch_stats


@pytest.mark.parametrize("shape", [(0, 3), (4, 0, 3), (2, 5, 0)])
@pytest.mark.parametrize("momentum", [0.9, None])
def test_an_empty_batch_changes_nothing(shape, momentum):
    params, batch_stats = jbn.init(shape[-1], momentum=momentum)
    y, updated = jbn.batch_norm(jnp.zeros(shape), params, batch_stats, train=True, momentum=momentum)
    assert y.shape == shape
    jax.tree.map(np.testing.assert_array_equal, updated, batch_stats)


def test_a_fully_masked_channel_keeps_its_statistics_and_poisons_nothing():
    x, params, batch_stats, _ = cases.NAMES["mlp"].make()
    mask = jnp.ones(x.shape, bool).at[:, 1].set(False)
    x = x.at[:, 1].set(jnp.nan)

    def loss(x, params):
        y, stats = jbn.batch_norm(x, params, batch_stats, train=True, mask=mask)
        return jnp.sum(jnp.sin(jnp.where(mask, y, 0))), (y, stats)

    gradients, (y, stats) = jax.grad(loss, (0, 1), has_aux=True)(x, params)
    others = np.array([0, 2, 3])
    close(y[:, others], reference.batch_norm(x, params, mask=mask)[:, others], reduced=6)
    assert all(np.isfinite(v).all() for v in jax.tree.leaves((gradients, stats)))
    assert stats["mean"][1] == batch_stats["mean"][1]
    assert stats["var"][1] == batch_stats["var"][1]


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_a_non_finite_value_shows_in_its_channel_only_and_leaves_its_statistics(bad):
    x, params, batch_stats, _ = cases.NAMES["nhwc"].make()
    clean, _ = jbn.batch_norm(x, params, batch_stats, train=True)
    y, stats = jbn.batch_norm(x.at[0, 0, 0, 2].set(bad), params, batch_stats, train=True)
    assert np.isnan(y[..., 2]).all()
    others = np.array([0, 1, 3])
    close(y[..., others], clean[..., others], reduced=18)
    assert stats["mean"][2] == batch_stats["mean"][2]
    assert stats["var"][2] == batch_stats["var"][2]
    assert np.isfinite(stats["mean"]).all()
    assert (stats["mean"][others] != batch_stats["mean"][others]).all()


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
@pytest.mark.parametrize("train", [True, False])
def test_non_finite_values_under_the_mask_reach_no_gradient(bad, train):
    x, params, batch_stats, _ = cases.NAMES["sequence"].make()
    mask = jnp.ones((3, 5, 1), bool).at[1, 2:].set(False)
    poisoned = jnp.where(mask, x, bad)

    def loss(x, params):
        y, _ = jbn.batch_norm(x, params, batch_stats, train=train, mask=mask)
        return jnp.sum(jnp.sin(jnp.where(mask, y, 0)))

    expected = jax.grad(loss, (0, 1))(x, params)
    jax.tree.map(
        lambda a, b: close(a, b, reduced=15), jax.grad(loss, (0, 1))(poisoned, params), expected
    )


def test_one_value_per_channel_gives_bias_and_a_warning():
    x, params, batch_stats, _ = cases.NAMES["mlp"].make()
    with pytest.warns(UserWarning, match="one value per channel"):
        y, stats = jbn.batch_norm(x[:1], params, batch_stats, train=True)
    np.testing.assert_array_equal(y, params["bias"][None])
    assert np.isfinite(stats["var"]).all()


def test_mask_of_ones_is_no_mask():
    x, params, batch_stats, _ = cases.NAMES["nhwc"].make()
    expected = jbn.batch_norm(x, params, batch_stats, train=True)
    for mask in (True, jnp.ones(4), jnp.ones((2, 3, 3, 1), jnp.int32), np.ones((3, 1), bool)):
        masked = jbn.batch_norm(x, params, batch_stats, train=True, mask=mask)
        jax.tree.map(lambda a, b: close(a, b, reduced=18), masked, expected)


def test_integer_weights_repeat_samples():
    x, params, batch_stats, _ = cases.NAMES["mlp"].make()
    times = np.array([1, 3, 0, 2, 1, 1])
    weighted, stats = jbn.batch_norm(x, params, batch_stats, train=True, mask=times[:, None])
    rows = np.repeat(np.arange(6), times)
    repeated, expected = jbn.batch_norm(x[rows], params, batch_stats, train=True)
    close(np.asarray(weighted)[rows], repeated, reduced=8)
    jax.tree.map(lambda a, b: close(a, b, reduced=8), stats, expected)


def test_traced_momentum_and_epsilon_work_as_schedules():
    x, params, batch_stats, _ = cases.NAMES["mlp"].make()
    call = jax.jit(
        lambda momentum, epsilon: jbn.batch_norm(
            x, params, batch_stats, train=True, momentum=momentum, epsilon=epsilon
        )
    )
    expected = jbn.batch_norm(x, params, batch_stats, train=True, momentum=0.7, epsilon=1e-2)
    jax.tree.map(lambda a, b: close(a, b), call(0.7, 1e-2), expected)


def test_new_values_of_momentum_and_epsilon_do_not_recompile():
    x, params, batch_stats, _ = cases.NAMES["mlp"].make()
    jbn.batch_norm(x, params, batch_stats, train=True, momentum=0.11, epsilon=1e-4)
    before = jbn._batch_norm._train._cache_size()
    for momentum in (0.12, 0.13):
        jbn.batch_norm(x, params, batch_stats, train=True, momentum=momentum, epsilon=momentum)
    assert jbn._batch_norm._train._cache_size() == before


def test_the_heavy_part_is_jitted_without_the_caller():
    x, params, batch_stats, _ = cases.NAMES["mlp"].make()
    for train in (True, False):
        jaxpr = jax.make_jaxpr(lambda x, t=train: jbn.batch_norm(x, params, batch_stats, train=t))(x)
        outside = [e.primitive.name for e in jaxpr.eqns]
        assert "jit" in outside or "pjit" in outside
        assert not {"sub", "mul", "reduce_sum", "rsqrt"} & set(outside)


def test_init_names_shapes_and_dtypes():
    params, batch_stats = jbn.init((3, 4), dtype=jnp.bfloat16, momentum=None)
    described = jax.tree.map(lambda v: (v.shape, v.dtype.name), (params, batch_stats))
    assert described == (
        {"scale": ((3, 4), "bfloat16"), "bias": ((3, 4), "bfloat16")},
        {"mean": ((3, 4), "float32"), "var": ((3, 4), "float32"), "count": ((3, 4), "int32")},
    )
    np.testing.assert_array_equal(params["scale"], 1)
    np.testing.assert_array_equal(batch_stats["var"], 1)
    assert set(jbn.init(3)[1]) == {"mean", "var"}
    assert jbn.init(np.int64(3))[0]["scale"].shape == (3,)


def test_every_keyword_is_documented():
    for function in (jbn.batch_norm, jbn.moments, jbn.normalize, jbn.update_running, jbn.init):
        documented = inspect.getdoc(function) or ""
        for name in inspect.signature(function).parameters:
            assert re.search(rf"^ +(\w+, )*{name}(, \w+)*: ", documented, re.M), (function, name)


@pytest.mark.parametrize("mean", [1e18, 1e25])
def test_squares_that_overflow_are_seen_not_zeroed(mean):
    """Beyond about 1e18 float32 has no squares: the deviations must stay below, the mean need not."""
    x = (mean * (1 + 1e-5 * np.random.default_rng(0).standard_normal((2000, 3)))).astype(np.float32)
    y, _ = jbn.batch_norm(x, {}, jbn.init(3)[1], train=True)
    if mean == 1e18:
        close(y, reference.batch_norm(x, {}), reduced=2000)
    else:
        assert np.isnan(y).all()


def test_padding_with_the_largest_number_reaches_no_gradient():
    x, params, batch_stats, _ = cases.NAMES["sequence"].make()
    mask = jnp.ones((3, 5, 1), bool).at[1, 2:].set(False)

    def loss(x, params):
        y, _ = jbn.batch_norm(x, params, batch_stats, train=True, mask=mask)
        return jnp.sum(jnp.sin(jnp.where(mask, y, 0)))

    expected = jax.grad(loss, (0, 1))(x, params)
    padded = jnp.where(mask, x, jnp.finfo(jnp.float32).min)
    actual = jax.grad(loss, (0, 1))(padded, params)
    jax.tree.map(lambda a, b: close(a, b, reduced=15), actual, expected)
    assert np.isfinite(jax.hessian(loss)(padded, params)).all()


def test_integer_epsilon_and_parameters_have_gradients():
    x, _, batch_stats, _ = cases.NAMES["mlp"].make()

    def loss(x, epsilon, scale):
        y, _ = jbn.batch_norm(x, {"scale": scale}, batch_stats, train=True, epsilon=epsilon)
        return jnp.sum(y**3)

    expected = jax.grad(loss)(x, 1.0, jnp.full(4, 2.0))
    close(jax.grad(loss)(x, 1, np.full(4, 2)), expected, reduced=6)
    close(jax.grad(loss)(x, np.int32(1), [2, 2, 2, 2]), expected, reduced=6)


@pytest.mark.parametrize("value", [1e-25, 3e-20, -1e-38])
def test_a_tiny_constant_gives_exactly_bias(value):
    y, _ = jbn.batch_norm(np.full((7, 3), value, np.float32), {}, jbn.init(3)[1], train=True)
    np.testing.assert_array_equal(y, 0)


def test_a_channel_of_inf_has_no_variance():
    m = jbn.moments(jnp.ones((5, 2)).at[:, 0].set(jnp.inf))
    np.testing.assert_array_equal(m.var, [np.nan, 0])
    np.testing.assert_array_equal(m.mean, [np.nan, 1])


def test_clean_data_passes_debug_nans_without_jit():
    x, params, batch_stats, _ = cases.NAMES["mlp"].make()
    with jax.debug_nans(True), jax.disable_jit():
        y, _ = jbn.batch_norm(x, params, batch_stats, train=True)
    close(y, reference.batch_norm(x, params), reduced=6)
