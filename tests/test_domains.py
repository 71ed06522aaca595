"""`jbn.domains`: indices of every kind, domains of other norms, errors; see test_variants.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jbn

RNG = np.random.default_rng(0)
X = jnp.asarray(1 + 2 * RNG.standard_normal((6, 3, 4)), jnp.float32)
NORM = jbn.domains(3)
PARAMS, STATS = NORM.init(4)
MIXED = jnp.array([2, 0, 2, 0, 0, 2])
close = functools.partial(jax.tree.map, lambda a, b: np.testing.assert_allclose(a, b, 2e-5, 2e-5))


def train(norm=NORM, x=X, params=PARAMS, stats=STATS, **kwargs):
    return norm.apply(x, params, stats, train=True, **kwargs)


def row(stats, k):
    return jax.tree.map(lambda v: v[k], stats)


@pytest.mark.parametrize("domain", [0, MIXED], ids=["batch", "example"])
def test_an_absent_domain_keeps_its_statistics(domain):
    _, stats = train(domain=domain)
    jax.tree.map(np.testing.assert_array_equal, row(stats, 1), row(STATS, 1))
    assert np.any(row(stats, 0)["mean"] != row(STATS, 0)["mean"])


def test_a_traced_index_in_a_scan():
    order = jnp.array([2, 0, 2])

    def step(stats, domain):
        y, stats = train(stats=stats, domain=domain)
        return stats, y

    stats, ys = jax.jit(lambda: jax.lax.scan(step, STATS, order))()
    expected = [jbn.init(4)[1] for _ in range(3)]
    for k in order:
        y, expected[k] = jbn.batch_norm(X, PARAMS, expected[k], train=True)
    close(ys[-1], y)
    for k in range(3):
        close(row(stats, k), expected[k])


@pytest.mark.parametrize("domain", [3, -1, jnp.array([0, 0, 0, 1, -1, 3])], ids=str)
def test_an_index_outside_is_an_error_where_it_is_known_and_nan_where_it_is_traced(domain):
    with pytest.raises(ValueError, match=r"`domain` must lie in 0 \.\.\. 2"):
        train(domain=domain)

    @functools.partial(jax.jit, static_argnums=1)
    def traced(domain, flag):
        return NORM.apply(X, PARAMS, STATS, train=flag, domain=domain)

    outside = jnp.broadcast_to((jnp.asarray(domain) < 0) | (jnp.asarray(domain) > 2), 6)
    y, _ = traced(domain, False)
    np.testing.assert_array_equal(np.isnan(y).all((1, 2)), outside)
    y, stats = traced(domain, True)
    if jnp.ndim(domain):
        np.testing.assert_array_equal(np.isnan(y).all((1, 2)), outside)
    jax.tree.map(np.testing.assert_array_equal, row(stats, 2), row(STATS, 2))


def test_scale_and_bias_of_each_domain_learn_from_its_examples_alone():
    norm = jbn.domains(3, share_params=False)
    params, _ = norm.init(4)
    assert params["scale"].shape == (3, 4)

    @functools.partial(jax.jit, static_argnums=1)
    def gradient(domain, example):
        domain = domain if example else domain[0]
        return jax.grad(lambda p: jnp.sum(train(norm, params=p, domain=domain)[0] ** 3))(params)

    for example, present in ((True, [0, 2]), (False, [2])):
        scale = gradient(MIXED, example)["scale"]
        np.testing.assert_array_equal(np.flatnonzero(np.abs(scale).sum(1)), present)


def test_domains_of_other_norms():
    ghost, renorm = jbn.ghost(groups=3), jbn.renorm(**jbn.crossq_warmup(steps=2))
    for inner in (ghost, renorm):
        norm = jbn.domains(2, inner)
        params, stats = norm.init(4)
        y, stats = train(norm, params=params, stats=stats, domain=1)
        expected, own = train(inner, stats=inner.init(4)[1])
        close((y, row(stats, 1)), (expected, own))
        jax.tree.map(np.testing.assert_array_equal, row(stats, 0), inner.init(4)[1])


def test_scale_of_the_call_with_an_index_for_each_example():
    norm = jbn.conditional(jbn.domains(3))
    scale = jnp.asarray(RNG.uniform(0.5, 2, (6, 4)), jnp.float32)
    y, stats = norm.apply(X, {}, STATS, train=True, scale=scale, domain=MIXED)
    expected, wanted = train(params={}, domain=MIXED)
    close((y, stats), (expected * scale[:, None], wanted))


def test_clean_and_adversarial_examples_in_one_batch():
    """Auxiliary batch norm: evaluation by the statistics of the clean ones."""
    norm = jbn.domains(2)
    both = jnp.concatenate([X, X + 5 * jnp.sign(X)])
    auxiliary = jnp.repeat(jnp.arange(2), 6)
    y, stats = train(norm, both, stats=norm.init(4)[1], domain=auxiliary, momentum=0.0)
    clean, own = jbn.batch_norm(X, PARAMS, jbn.init(4)[1], train=True, momentum=0.0)
    close((y[:6], row(stats, 0)), (clean, own))
    inference, _ = norm.apply(X, PARAMS, stats, train=False, domain=0)
    close(inference, clean)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"n": 0}, "`n` must be a positive integer"),
        ({"n": 2, "norm": NORM}, r"`norm` of jbn\.domains must not take `domain`"),
    ],
    ids=str,
)
def test_wrong_arguments(keywords, message):
    with pytest.raises(ValueError, match=message):
        jbn.domains(**keywords)


def test_wrong_calls():
    with pytest.raises(TypeError, match="`domain` must be given in the call"):
        train()
    for wrong in (0.5, jnp.zeros((6, 1), jnp.int32), jnp.ones(6, bool)):
        with pytest.raises(TypeError, match="`domain` must be an integer or an array"):
            train(domain=wrong)
    with pytest.raises(TypeError, match=r"an array of shape \(3000, 1\) and dtype int32$"):
        train(domain=np.zeros((3000, 1), np.int32))
    with pytest.raises(ValueError, match="one index or one for each of the 6 examples"):
        train(domain=jnp.zeros(3, jnp.int32))
    with pytest.raises(ValueError, match=r"`domain` may be an index for each example with norm=jbn"):
        train(jbn.domains(3, jbn.ghost(groups=3)), domain=MIXED)


@pytest.mark.parametrize("share_params", [True, False])
def test_statistics_of_fewer_domains(share_params):
    params, stats = jbn.domains(2).init(4)
    norm = jbn.domains(3, share_params=share_params)
    if not share_params:
        stats = norm.init(4)[1]
    with pytest.raises(ValueError, match=r"must have a first axis of 3, for 3 domains, got shape"):
        norm.apply(jnp.ones((6, 4)), params, stats, train=True, domain=2)


def test_statistics_in_half_precision_and_of_complex_values_are_widened():
    norm = jbn.domains(2)
    stats = {n: v.astype(jnp.bfloat16) for n, v in norm.init(4)[1].items()}
    assert norm.apply(jnp.ones((6, 4)), {}, stats, train=True, domain=0)[1]["var"].dtype == jnp.float32
    _, new = norm.apply(jnp.full((6, 4), 1j), {}, norm.init(4)[1], train=True, domain=0, momentum=0.0)
    np.testing.assert_array_equal(new["mean"], [[1j] * 4, [0] * 4])
