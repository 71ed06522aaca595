"""`jbn.ghost`: uneven groups, conventions of the running statistics, errors; see test_variants.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jbn
import variant_reference
from tolerance import tolerance

RNG = np.random.default_rng(0)
X = jnp.asarray(1 + 2 * RNG.standard_normal((6, 3, 4)), jnp.float32)
PARAMS = {"scale": jnp.array([0.5, 2.0, -1.0, 1.0]), "bias": jnp.arange(4.0)}
STATS = {"mean": jnp.zeros(4), "var": jnp.full(4, 2.0)}
close = functools.partial(jax.tree.map, lambda a, b: np.testing.assert_allclose(a, b, 2e-5, 2e-5))


def train(norm, x=X, params=PARAMS, stats=STATS, **kwargs):
    return norm.apply(x, params, stats, train=True, **{"momentum": 0.9, **kwargs})


def expected(group_of, **kwargs):
    x, params, stats = jax.tree.map(lambda v: np.asarray(v, np.float64), (X, PARAMS, STATS))
    return variant_reference.ghost(x, params, stats, group_of=group_of, **kwargs)


@pytest.mark.parametrize(
    ("keywords", "group_of"),
    [
        ({"size": 4}, (0, 0, 0, 0, 1, 1)),
        ({"groups": 4, "interleaved": True}, (0, 1, 2, 3, 0, 1)),
        ({"groups": 5}, (0, 0, 1, 1, 2, 2)),
        ({"size": 10}, (0,) * 6),
    ],
    ids=str,
)
def test_uneven_groups_are_each_normalized_by_what_they_have(keywords, group_of):
    norm = jbn.ghost(**keywords, uneven=True)
    close(train(norm), expected(group_of))


@pytest.mark.parametrize("running", ["groups", "sequential"])
def test_other_conventions_of_the_running_statistics(running):
    mask = RNG.random((6, 3, 1)) < 0.8
    norm = jbn.ghost(groups=3, interleaved=True, running=running)
    close(train(norm, mask=mask), expected((0, 1, 2) * 2, running=running, mask=mask))


def test_the_mean_of_the_variances_of_groups_of_two_is_half_the_variance():
    """Why `running="groups"` is not the default: inference would be off by sqrt(2)."""
    x = jnp.asarray(np.random.default_rng(1).standard_normal((20_000, 1)), jnp.float32)
    params, stats = jbn.init(1)

    def variance(**kwargs):
        norm = jbn.ghost(size=2, running=kwargs.pop("running"))
        return float(norm.apply(x, params, stats, train=True, momentum=0.0, **kwargs)[1]["var"][0])

    assert abs(variance(running="batch") - 1) < 0.03
    assert abs(variance(running="groups") - 0.5) < 0.03
    assert abs(variance(running="groups", running_variance="unbiased") - 1) < 0.03


def test_the_whole_batch_unbiased_and_cumulative():
    _, stats = jbn.init(4, momentum=None)
    options = {"momentum": None, "running_variance": "unbiased"}
    _, updated = train(jbn.ghost(groups=2), stats=stats, **options)
    close(updated, jbn.batch_norm(X, PARAMS, stats, train=True, **options)[1])


def test_scale_and_bias_of_each_example():
    scale = jnp.asarray(RNG.uniform(0.5, 2, (6, 1, 4)), jnp.float32)
    params = {"scale": scale, "bias": jnp.ones((1, 3, 1))}
    y, _ = train(jbn.ghost(groups=4, uneven=True), params=params)
    z, _ = train(jbn.ghost(groups=4, uneven=True), params={})
    close(y, z * scale + 1)


def test_a_group_that_is_not_finite_shows_and_leaves_the_statistics_of_its_channel():
    clean_y, clean = train(jbn.ghost(groups=3))
    y, stats = train(jbn.ghost(groups=3), X.at[2, 0, 1].set(jnp.inf))
    assert np.isnan(y[2:4, :, 1]).all()
    close(y[4:], clean_y[4:])
    close(stats, {name: clean[name].at[1].set(STATS[name][1]) for name in STATS})


@pytest.mark.parametrize("keywords", [{"groups": 2}, {"size": 2}], ids=str)
def test_an_empty_batch_changes_nothing(keywords):
    y, stats = train(jbn.ghost(**keywords), X[:0])
    assert y.shape == (0, 3, 4)
    jax.tree.map(np.testing.assert_array_equal, stats, STATS)


def test_groups_of_one_value_are_warned_about():
    with pytest.warns(UserWarning, match="one value per channel"):
        y, _ = train(jbn.ghost(size=1), X[:, 0])
    np.testing.assert_array_equal(y, jnp.broadcast_to(PARAMS["bias"], (6, 4)))


def test_inference_takes_any_batch():
    y, _ = jbn.ghost(groups=4).apply(X[:1], PARAMS, STATS, train=False)
    np.testing.assert_array_equal(y, jbn.batch_norm(X[:1], PARAMS, STATS, train=False)[0])


def test_a_batch_that_does_not_divide_is_an_error_that_says_what_to_do():
    with pytest.raises(
        ValueError, match=r"6 examples, which do not divide into 4 groups: .*`uneven=True`"
    ):
        train(jbn.ghost(groups=4))
    with pytest.raises(ValueError, match="6 examples, which do not divide into groups of 4"):
        train(jbn.ghost(size=4))
    with pytest.raises(ValueError, match="`axis` must leave an axis of `x` for the examples"):
        train(jbn.ghost(groups=1), X[0], {}, jbn.init((3, 4))[1], axis=(0, 1))


def test_a_layer_is_initialized_with_any_batch():
    layer = jbn.linen.BatchNorm(use_running_average=False, norm=jbn.ghost(groups=4))
    variables = layer.init(jax.random.key(0), X[:1])
    assert isinstance(layer, nn.Module) and variables["params"]["scale"].shape == (4,)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({}, "one of `groups` and `size`"),
        ({"groups": 2, "size": 2}, "one of `groups` and `size`"),
        ({"groups": 0}, "`groups` must be a positive integer"),
        ({"groups": 2.0}, "`groups` must be a positive integer"),
        ({"groups": True}, "`groups` must be a positive integer"),
        ({"size": -1}, "`size` must be a positive integer"),
        ({"groups": 2, "running": "mean"}, "`running` must be one of"),
    ],
    ids=str,
)
def test_wrong_arguments(keywords, message):
    with pytest.raises(ValueError, match=message):
        jbn.ghost(**keywords)


def test_a_large_mean_loses_no_digits():
    x = X + 1e4
    y, stats = train(jbn.ghost(groups=2), x, {}, momentum=0.0)
    wide = np.asarray(x, np.float64)
    exact, _ = variant_reference.ghost(wide, {}, STATS, group_of=(0, 0, 0, 1, 1, 1))
    np.testing.assert_allclose(y, exact, **tolerance("float32", 9))
    np.testing.assert_allclose(stats["var"], wide.var((0, 1)), **tolerance("float32", 18))
