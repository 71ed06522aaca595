"""`jbn.update_running`: both averages, both variances, and channels that keep their values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jbn
import reference
from cases import CASES
from tolerance import tolerance


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("running_variance", ["biased", "unbiased"])
def test_matches_the_oracle(case, running_variance):
    x, _, batch_stats, kwargs = case.make()
    mask = kwargs.get("mask")
    m = jbn.moments(x, axis=case.axis, mask=mask)
    new = jbn.update_running(batch_stats, m, momentum=case.momentum, running_variance=running_variance)
    expected = reference.update_running(
        batch_stats, x, case.axis, mask, case.momentum, running_variance
    )
    for name in expected:
        np.testing.assert_allclose(new[name], expected[name], **tolerance("float32", case.reduced))


def moments_of(mean, var, count):
    arrays = (jnp.asarray(v, jnp.float32) for v in (mean, var, count))
    return jbn.Moments(*arrays)


def test_the_unbiased_variance_is_guarded_at_one_sample():
    _, batch_stats = jbn.init(3)
    m = moments_of([0, 0, 0], [4, 4, 0], [2, 1, 0.5])
    new = jbn.update_running(batch_stats, m, momentum=0.0, running_variance="unbiased")
    np.testing.assert_array_equal(new["var"], [8, 4, 0])


@pytest.mark.parametrize("momentum", [0.5, None])
def test_channels_without_samples_or_with_non_finite_statistics_keep_theirs(momentum):
    _, batch_stats = jbn.init(4, momentum=momentum)
    m = moments_of([2, 2, np.nan, 2], [2, 2, 2, np.inf], [5, 0, 5, 5])
    new = jbn.update_running(batch_stats, m, momentum=momentum)
    assert new["mean"][0] == (2 if momentum is None else 1)
    np.testing.assert_array_equal(new["mean"][1:], [0, 0, 0])
    np.testing.assert_array_equal(new["var"][1:], [1, 1, 1])
    if momentum is None:
        np.testing.assert_array_equal(new["count"], [1, 0, 0, 0])


def test_momentum_one_keeps_and_momentum_zero_replaces():
    _, batch_stats = jbn.init(2)
    m = moments_of([3, 4], [5, 6], [9, 9])
    kept = jbn.update_running(batch_stats, m, momentum=1.0)
    jax.tree.map(np.testing.assert_array_equal, kept, batch_stats)
    replaced = jbn.update_running(batch_stats, m, momentum=0.0)
    np.testing.assert_array_equal(replaced["mean"], [3, 4])


def test_one_minus_momentum_is_rounded_once():
    _, batch_stats = jbn.init(1)
    new = jbn.update_running(batch_stats, moments_of([1], [1], [9]), momentum=0.99)
    assert new["mean"][0] == np.float32(0.01)


def test_stored_dtypes_are_kept():
    batch_stats = {"mean": jnp.zeros(2, jnp.float32), "var": jnp.ones(2, jnp.float32)}
    with jax.enable_x64(True):
        m = jbn.moments(jnp.asarray(np.random.default_rng(0).standard_normal((5, 2))))
        assert m.mean.dtype == jnp.float64
        new = jbn.update_running(batch_stats, m, momentum=jnp.float64(0.5))
    assert new["mean"].dtype == new["var"].dtype == jnp.float32


def test_a_complex_batch_makes_a_real_mean_complex():
    _, batch_stats = jbn.init(2)
    x = jnp.asarray([[1 + 2j, 3], [2 - 1j, 5j]], jnp.complex64)
    new = jbn.update_running(batch_stats, jbn.moments(x), momentum=0.0)
    np.testing.assert_allclose(new["mean"], np.asarray(x).mean(0))
    assert new["var"].dtype == jnp.float32


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_statistics_converge_to_the_mean(dtype):
    """In bfloat16 0.99 is 0.988 and 0.01 another 0.01: together not 1."""
    stats = {"mean": jnp.zeros(2, dtype), "var": jnp.ones(2, dtype)}
    m = moments_of([10.1, -3.3], [2.2, 0.1], [50, 50])
    step = jax.jit(lambda s: jbn.update_running(s, m))
    for _ in range(2000):
        stats = step(stats)
    np.testing.assert_allclose(stats["mean"], m.mean, rtol=1e-3)
    np.testing.assert_allclose(stats["var"], m.var, rtol=1e-3)


def test_weights_that_sum_to_1_but_for_rounding_are_those_of_one_sample():
    m = jbn.Moments(jnp.zeros(2), jnp.ones(2), jnp.array([1.0000001, 3.0]))
    _, stats = jbn.init(2)
    new = jbn.update_running(stats, m, momentum=0.0, running_variance="unbiased")
    np.testing.assert_allclose(new["var"], [1.0, 1.5])
