"""`jbn.batch_group`: group norm where it is, other norms, errors; see test_variants.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jbn

RNG = np.random.default_rng(0)
X = jnp.asarray(1 + 2 * RNG.standard_normal((6, 3, 4)), jnp.float32)
PARAMS = {"scale": jnp.array([0.5, 2.0, -1.0, 1.0]), "bias": jnp.arange(4.0)}
close = functools.partial(jax.tree.map, lambda a, b: np.testing.assert_allclose(a, b, 2e-5, 2e-5))


def train(norm, x=X, params=PARAMS, **kwargs):
    return norm.apply(x, params, norm.init(4)[1], train=True, **kwargs)


@pytest.mark.usefixtures("standard_promotion")
def test_over_one_example_it_is_group_norm():
    y, _ = train(jbn.batch_group(2, jbn.ghost(size=1)))
    layer = nn.GroupNorm(num_groups=2, epsilon=1e-5, use_fast_variance=False)
    close(y, layer.apply({"params": PARAMS}, X))


def test_over_several_examples_of_the_batch():
    norm = jbn.batch_group(2, jbn.ghost(size=3))
    y, stats = train(norm, momentum=0.0)
    flat = X.reshape(2, 9, 2, 2)
    z = (flat - flat.mean((1, 3), keepdims=True)) / jnp.sqrt(flat.var((1, 3), keepdims=True) + 1e-5)
    close(y, z.reshape(X.shape) * PARAMS["scale"][None, None] + PARAMS["bias"][None, None])
    close(stats["var"], X.reshape(18, 2, 2).var((0, 2)))


def test_one_group_and_a_mask_of_channels():
    mask = jnp.asarray(RNG.random(X.shape) < 0.7)
    y, stats = train(jbn.batch_group(1), params={}, mask=mask, momentum=0.0)
    counted = np.asarray(X)[np.asarray(mask)]
    close(stats, {"mean": counted.mean()[None], "var": counted.var()[None]})
    close(y, (X - counted.mean()) / np.sqrt(counted.var() + 1e-5))


def test_inference_is_by_the_statistics_of_the_groups():
    norm = jbn.batch_group(2)
    _, stats = train(norm, momentum=0.0)
    y, _ = norm.apply(X, PARAMS, stats, train=False)
    close(y, train(norm)[0])


@pytest.mark.parametrize(
    ("inner", "options"),
    [
        (jbn.renorm(), {}),
        (jbn.streaming(), {}),
        (jbn.inplace("leaky_relu"), {}),
        (jbn.domains(2), {"domain": jnp.array([0, 1, 1, 0, 0, 1])}),
        (jbn.timesteps(2), {"step": 1}),
        (jbn.weighted_inference(0.3), {}),
        (jbn.frozen(), {}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_of_other_norms_it_is_those_of_the_groups(inner, options):
    """A norm of two channels, of which each has the values of two."""
    norm = jbn.batch_group(2, inner)
    scale = jnp.array([0.5, 0.5, -1.0, -1.0])
    of_groups = {"scale": scale[::2], "bias": jnp.ones(2)}
    values = X.reshape(6, 3, 2, 2).swapaxes(2, 3).reshape(6, 6, 2)
    for mode in (True, False):
        y, stats = norm.apply(
            X, {"scale": scale, "bias": jnp.ones(4)}, norm.init(4)[1], train=mode, **options
        )
        expected, wanted = inner.apply(values, of_groups, inner.init(2)[1], train=mode, **options)
        close(y, expected.reshape(6, 3, 2, 2).swapaxes(2, 3).reshape(X.shape))
        close(stats, wanted)


def test_in_other_norms():
    scale = jnp.asarray(RNG.uniform(0.5, 2, (6, 4)), jnp.float32)
    conditional = jbn.conditional(jbn.batch_group(2))
    y, _ = conditional.apply(X, {}, conditional.init(4)[1], train=True, scale=scale)
    close(y, train(jbn.batch_group(2), params={})[0] * scale[:, None])
    domains = jbn.domains(3, jbn.batch_group(2), share_params=False)
    params, stats = domains.init(4)
    assert (params["scale"].shape, stats["mean"].shape) == ((3, 4), (3, 2))
    y, _ = domains.apply(X, params, stats, train=True, domain=1)
    close(y, train(jbn.batch_group(2), params=jbn.init(4)[0])[0])


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"groups": 0}, "`groups` must be a positive integer"),
        ({"groups": 2, "norm": jbn.conditional()}, r"`norm` of jbn\.batch_group must not take `scale`"),
        (
            {"groups": 2, "norm": jbn.frozen(jbn.domains(2, share_params=False))},
            r"`norm` of jbn\.batch_group must have one scale and bias",
        ),
    ],
    ids=str,
)
def test_wrong_arguments(keywords, message):
    with pytest.raises(ValueError, match=message):
        jbn.batch_group(**keywords)


def test_channels_that_do_not_divide():
    norm = jbn.batch_group(3)
    with pytest.raises(ValueError, match="`features` must have one feature axis, of channels that"):
        norm.init(4)
    with pytest.raises(ValueError, match="`x` must have one feature axis, of channels that divide"):
        norm.apply(X, PARAMS, norm.init(3)[1], train=True)
    with pytest.raises(ValueError, match="`features` must have one feature axis"):
        norm.init((3, 3))


@pytest.mark.parametrize(
    "norm",
    [jbn.ghost(size=2), jbn.weighted_inference(0.3), jbn.domains(2)],
    ids=lambda n: type(n).__name__,
)
@pytest.mark.parametrize("mode", [True, False], ids=["training", "inference"])
def test_channels_before_the_examples(norm, mode):
    norm = jbn.batch_group(2, norm)
    options = {"domain": jnp.array([0, 1, 0, 1, 0, 1])} if "Domains" in repr(norm) else {}
    params, stats = norm.init(4)
    y, expected = norm.apply(X, params, stats, train=mode, **options)
    first, new = norm.apply(X.transpose(2, 0, 1), params, stats, train=mode, axis=0, **options)
    close((first.transpose(1, 2, 0), new), (y, expected))


@pytest.mark.parametrize("mode", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize(
    "norm", [jbn.batch_group(2), jbn.ghost(groups=2)], ids=lambda n: type(n).__name__
)
@pytest.mark.parametrize("shape", [(0, 5, 4), (6, 0, 4)], ids=str)
def test_nothing_at_all(norm, shape, mode):
    params, stats = norm.init(4)
    y, new = norm.apply(jnp.zeros(shape), params, stats, train=mode)
    assert y.shape == shape
    jax.tree.map(np.testing.assert_array_equal, new, stats)


def test_of_an_inplace_norm_without_a_scale():
    norm = jbn.batch_group(2, jbn.inplace("identity"))
    y, _ = train(norm, params={"bias": PARAMS["bias"]})
    close(y, train(jbn.batch_group(2), params={"bias": PARAMS["bias"]})[0])
