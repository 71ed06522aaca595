"""Norms of norms, and those that are none."""

import functools
import itertools

import jax
import jax.numpy as jnp
import pytest

import jbn
from jbn.variants.composition import chain, check_inner, check_one_set


def test_a_keyword_is_taken_once():
    check_inner("other", jbn.ghost(groups=2), "scale")
    check_inner("other", jbn.conditional(), "domain")
    with pytest.raises(ValueError, match=r"`norm` of jbn.other must not take `bias`, which .* itself"):
        check_inner("other", jbn.conditional(), "domain", "bias")


def test_a_norm_is_a_value_and_no_function():
    with pytest.raises(TypeError, match=r"`norm` must be a jbn.Norm.*call it: ghost\(\.\.\.\)"):
        check_inner("other", jbn.ghost)


def test_the_chain_of_norms():
    inner = jbn.ghost(groups=2)
    outer = jbn.conditional(inner)
    assert list(chain(outer)) == [outer, inner]


def test_one_scale_and_bias():
    check_one_set("other", jbn.frozen(jbn.domains(2)))
    with pytest.raises(ValueError, match=r"`norm` of jbn\.other must have one scale and bias"):
        check_one_set("other", jbn.frozen(jbn.domains(2, share_params=False)))


LEAVES = {
    "plain": jbn.plain,
    "inplace": jbn.inplace("leaky_relu"),
    "ghost": jbn.ghost(groups=3),
    "renorm": jbn.renorm(**jbn.ioffe_warmup()),
    "streaming": jbn.streaming(),
}
WRAPPERS = {
    "batch_group": lambda norm: jbn.batch_group(2, norm),
    "conditional": jbn.conditional,
    "domains": lambda norm: jbn.domains(2, norm),
    "domains, own params": lambda norm: jbn.domains(2, norm, share_params=False),
    "timesteps": lambda norm: jbn.timesteps(3, norm),
    "frozen": jbn.frozen,
    "weighted_inference": lambda norm: jbn.weighted_inference(0.3, norm),
}
KEYWORDS = {
    "conditional": {"scale": jnp.ones((6, 4)), "bias": jnp.ones((6, 4))},
    "domains": {"domain": 1},
    "domains, own params": {"domain": 1},
    "timesteps": {"step": 1},
}


BY_DOMAIN = ("domains", "domains, own params")
REFUSED = {
    ("batch_group", "conditional"),
    ("batch_group", "domains, own params"),
    ("conditional", "conditional"),
    ("conditional", "frozen"),
    ("conditional", "domains, own params"),
    ("timesteps", "timesteps"),
    *itertools.product(BY_DOMAIN, BY_DOMAIN),
    *itertools.product(["weighted_inference"], WRAPPERS),
}
PAIRS = [*itertools.product(WRAPPERS, WRAPPERS)]


@pytest.mark.parametrize("names", [pair for pair in PAIRS if pair not in REFUSED], ids=", ".join)
def test_two_compose_around_every_other(names):
    outer, inner = names
    options = {**KEYWORDS.get(outer, {}), **KEYWORDS.get(inner, {})}
    x = jnp.ones((6, 3, 4))
    for name, leaf in LEAVES.items():
        if name == "inplace" and inner == "weighted_inference":
            continue
        norm = WRAPPERS[outer](WRAPPERS[inner](leaf))
        params, stats = norm.init(4)
        for train in (True, False):
            y, updated = jax.eval_shape(
                functools.partial(norm.apply, train=train, **options), x, params, stats
            )
            assert y.shape == x.shape
            assert jax.tree.map(jnp.shape, updated) == jax.tree.map(jnp.shape, stats)


@pytest.mark.parametrize("names", sorted(REFUSED), ids=", ".join)
def test_what_does_not_compose_is_refused_when_it_is_made(names):
    outer, inner = names
    with pytest.raises(ValueError, match="`norm` of jbn"):
        WRAPPERS[outer](WRAPPERS[inner](jbn.plain))
