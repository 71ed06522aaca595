"""`jbn.frozen`: what learns, of other norms, and how to switch to it late; see test_variants.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import jbn

X = jnp.asarray(1 + 2 * np.random.default_rng(0).standard_normal((6, 3, 4)), jnp.float32)
PARAMS = {"scale": jnp.array([0.5, 2.0, -1.0, 1.0]), "bias": jnp.arange(4.0)}
STATS = {"mean": jnp.array([0.0, 1.0, 2.0, -3.0]), "var": jnp.array([0.5, 1.0, 4.0, 8.0])}
equal = functools.partial(jax.tree.map, np.testing.assert_array_equal)


@pytest.mark.parametrize("train", [True, False])
def test_is_inference_in_training_too(train):
    equal(
        jbn.frozen().apply(X, PARAMS, STATS, train=train),
        jbn.batch_norm(X, PARAMS, STATS, train=False),
    )


@pytest.mark.parametrize("trainable", [True, False])
def test_what_learns(trainable):
    norm = jbn.frozen(trainable_params=trainable)

    def loss(apply):
        return jax.grad(lambda p, x: jnp.sum(apply(x, p)[0] ** 2), (0, 1))(PARAMS, X)

    of_params, dx = loss(lambda x, p: norm.apply(x, p, STATS, train=True))
    wanted, wanted_dx = loss(lambda x, p: jbn.batch_norm(x, p, STATS, train=False))
    equal(dx, wanted_dx)
    equal(of_params, wanted if trainable else jax.tree.map(jnp.zeros_like, wanted))


def test_of_domains():
    norm = jbn.domains(2)
    params, stats = norm.init(4)
    domain = jnp.array([0, 1, 0, 1, 1, 1])
    y, same = jbn.frozen(norm).apply(X, params, stats, train=True, domain=domain)
    equal((y, same), norm.apply(X, params, stats, train=False, domain=domain))


@pytest.mark.usefixtures("standard_promotion")
def test_linen_switches_by_a_field():
    class Model(nn.Module):
        norm: jbn.Norm = jbn.plain

        @nn.compact
        def __call__(self, x):
            return jbn.linen.BatchNorm(use_running_average=False, norm=self.norm)(nn.Dense(4)(x))

    model = Model()
    variables = model.init(jax.random.key(0), X)
    _, updated = model.apply(variables, X, mutable=["batch_stats"])
    variables = {**variables, **updated}
    frozen = model.clone(norm=jbn.frozen())
    _, unchanged = frozen.apply(variables, X, mutable=["batch_stats"])
    equal(unchanged["batch_stats"], updated["batch_stats"])
    gradients = jax.grad(
        lambda p: jnp.sum(frozen.apply({**variables, "params": p}, X, mutable=["batch_stats"])[0] ** 2)
    )(variables["params"])
    equal(gradients["BatchNorm_0"], {"scale": jnp.zeros(4), "bias": jnp.zeros(4)})
    assert np.abs(gradients["Dense_0"]["kernel"]).min() > 0


@pytest.mark.usefixtures("standard_promotion")
def test_nnx_switches_all_layers_at_once():
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(
        nnx.Linear(4, 4, rngs=rngs),
        jbn.nnx.BatchNorm(4, rngs=rngs),
        nnx.relu,
        jbn.nnx.BatchNorm(4, rngs=rngs),
    )
    model(X)
    before = nnx.state(model, nnx.BatchStat)
    before = jax.tree.map(jnp.copy, before)
    model.set_attributes(jbn.nnx.BatchNorm, norm=jbn.frozen())
    y = model(X)
    equal(nnx.state(model, nnx.BatchStat), before)
    model.set_attributes(jbn.nnx.BatchNorm, norm=jbn.plain)
    model.eval()
    equal(y, model(X))


def test_what_is_no_norm_is_refused():
    with pytest.raises(TypeError, match=r"`norm` must be a jbn\.Norm"):
        jbn.frozen(jbn.ghost)
