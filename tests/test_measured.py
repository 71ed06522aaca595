"""The norm that collects moments: those of all batches taken together."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jbn
from jbn.tools.measured import Measured, nothing_yet
from tolerance import tolerance

RNG = np.random.default_rng(0)


def collected(norm, xs, masks=None, **options):
    """Its statistics after some batches, and the last y."""
    params, stats = norm.init(xs[0].shape[-1])
    step = jax.jit(
        lambda x, stats, mask: norm.apply(x, params, stats, train=False, mask=mask, **options)
    )
    for x, mask in zip(xs, masks or [None] * len(xs), strict=True):
        y, stats = step(x, stats, mask)
    return y, stats


@pytest.mark.parametrize("mean", [0, 7, 1e5])
def test_of_many_batches(mean):
    xs = [np.float32(mean + RNG.standard_normal((50, 2))) for _ in range(100)]
    whole = np.float64(np.concatenate(xs))
    _, stats = collected(Measured(jbn.plain, by_batch=True), xs)
    np.testing.assert_allclose(stats["total_mean"], whole.mean(0), rtol=1e-6, atol=1e-7)
    exact = np.float64(stats["total_mean"]) + np.float64(stats["total_remainder"])
    np.testing.assert_allclose(exact - whole.mean(0), 0, atol=2e-6)
    np.testing.assert_allclose(stats["new_var"], whole.var(0), **tolerance("float32", 5000))
    np.testing.assert_array_equal(stats["total_count"], 5000)
    # Its own are as they were.
    np.testing.assert_array_equal(stats["mean"], 0)


def test_weights_and_channels_that_are_not_there():
    xs = [np.float32(RNG.standard_normal((9, 2))) for _ in range(2)]
    masks = [np.float32(RNG.random((9, 2))), np.zeros((9, 2), np.float32)]
    masks[1][:, 0] = 2
    _, stats = collected(Measured(jbn.plain, by_batch=True), xs, masks)
    whole, weights = np.float64(np.concatenate(xs)), np.float64(np.concatenate(masks))
    mean = np.average(whole, 0, weights)
    np.testing.assert_allclose(stats["new_mean"], mean, **tolerance("float32", 18))
    variance = np.average((whole - mean) ** 2, 0, weights)
    np.testing.assert_allclose(stats["new_var"], variance, **tolerance("float32", 18))
    np.testing.assert_allclose(stats["total_count"], weights.sum(0), rtol=1e-6)


@pytest.mark.parametrize("by_batch", [True, False])
def test_normalizes_by_the_batch_or_by_its_own(by_batch):
    x = np.float32(5 + RNG.standard_normal((20, 2)))
    y, _ = collected(Measured(jbn.ghost(groups=2), by_batch), [x])
    mean, var = (x.mean(0), x.var(0)) if by_batch else (0, 1)
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + 1e-5), rtol=1e-4, atol=1e-5)


def test_nothing_finite_leaves_what_there_was():
    x = np.full((4, 2), np.nan, np.float32)
    _, stats = collected(Measured(jbn.plain, by_batch=False), [x])
    np.testing.assert_array_equal(stats["new_var"], 1)
    assert not stats["total_count"].any()


def test_half_precision_is_single():
    batch_stats = {"mean": jnp.ones(2, "bfloat16"), "var": jnp.ones(2, "bfloat16")}
    totals = nothing_yet(batch_stats)
    assert {v.dtype for v in totals.values()} == {jnp.dtype("float32")}
    np.testing.assert_array_equal(totals["new_mean"], 1)


def test_keywords_are_those_of_its_norm():
    norm = Measured(jbn.renorm(), by_batch=True)
    assert norm == dataclasses.replace(norm) and hash(norm) == hash(dataclasses.replace(norm))
    norm.check(["r_max", "mask", "axis_name"])
    with pytest.raises(TypeError, match="takes no keyword `domain`"):
        norm.check(["domain"])
