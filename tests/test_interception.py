"""`jbn.tools.converted`: Flax's Linen layers run as jbn's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jbn
from jbn.tools import converted

pytestmark = pytest.mark.usefixtures("standard_promotion")
X = 1e4 + jax.random.normal(jax.random.key(0), (8, 3))
MUTABLE = {"mutable": ["batch_stats"]}


class Activated(nn.BatchNorm):
    """A subclass, whose calls are its own."""


class Network(nn.Module):
    """Layers made in setup and in the call, recomputed, and one called twice."""

    train: bool = True

    def setup(self):
        self.shared = nn.BatchNorm(momentum=0.5)

    @nn.compact
    def __call__(self, x):
        x = self.shared(x, use_running_average=not self.train)
        x = nn.remat(nn.BatchNorm)(use_running_average=not self.train, use_scale=False)(x)
        x = nn.BatchNorm(not self.train, name="own", bias_init=nn.initializers.ones)(nn.Dense(3)(x))
        return self.shared(x, use_running_average=not self.train)


def init(model, x=X):
    return model.init(jax.random.key(1), x)


def test_variables_are_those_of_flax():
    variables = init(Network())
    with converted():
        inside = init(Network())
    jax.tree.map(np.testing.assert_array_equal, variables, inside)


def test_a_checkpoint_of_flax_runs_exactly_inside_and_as_before_outside():
    layer = nn.BatchNorm(use_running_average=False)
    variables = init(layer)
    with converted():
        y, updated = layer.apply(variables, X, **MUTABLE)
    expected = jbn.linen.BatchNorm(use_running_average=False).apply(variables, X, **MUTABLE)
    jax.tree.map(np.testing.assert_array_equal, (y, updated), expected)
    outside, _ = layer.apply(variables, X, **MUTABLE)
    assert abs(outside - y).max() > 0.1  # Flax's E[x^2] - E[x]^2


def test_a_network_in_both_modes():
    x = X - 1e4  # where Flax's is as good
    variables = init(Network(), x)
    expected, updated = Network().apply(variables, x, **MUTABLE)
    with converted():
        y, ours = jax.jit(functools.partial(Network().apply, **MUTABLE))(variables, x)
        inference = Network(train=False).apply({**variables, **updated}, x)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    jax.tree.map(close, (y, ours), (expected, updated))
    close(inference, Network(train=False).apply({**variables, **updated}, x))


def test_fields_keywords_and_statistics_of_a_variant():
    norm = jbn.domains(2)
    layer = nn.BatchNorm(use_running_average=False, momentum=0.0, epsilon=0.1)
    with converted(norm):
        variables = layer.init(jax.random.key(0), X, domain=0)
        y, updated = layer.apply(variables, X, domain=1, **MUTABLE)
    np.testing.assert_allclose(updated["batch_stats"]["mean"], [[0, 0, 0], X.mean(0)], rtol=1e-5)
    expected, _ = norm.apply(X, *norm.init(3), domain=1, train=True, epsilon=0.1)
    np.testing.assert_allclose(y, expected, rtol=1e-5)


def test_under_scan_and_vmap():
    class Step(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.BatchNorm(use_running_average=False)(x), None

    stacked = {"variable_axes": {"params": 0, "batch_stats": 0}, "split_rngs": {"params": True}}
    scanned = nn.scan(Step, length=2, **stacked)()
    variables = scanned.init(jax.random.key(0), X, None)
    with converted():
        (y, _), updated = scanned.apply(variables, X, None, **MUTABLE)
    assert jax.tree.leaves(updated)[0].shape == (2, 3)
    np.testing.assert_allclose(y.std(0), 1, rtol=1e-3)

    mapped = nn.vmap(nn.BatchNorm, **stacked)(use_running_average=False)
    variables = mapped.init(jax.random.key(0), jnp.stack([X, X]))
    with converted():
        y, _ = mapped.apply(variables, jnp.stack([X, 2 * X]), **MUTABLE)
    np.testing.assert_allclose(y.std(1), 1, rtol=1e-3)


def test_other_modules_and_subclasses_are_left():
    model = nn.Sequential([nn.Dense(3), nn.LayerNorm(), Activated(use_running_average=False)])
    variables = init(model)
    expected = model.apply(variables, X, **MUTABLE)
    with converted(jbn.ghost(2)):
        y = model.apply(variables, X, **MUTABLE)
    jax.tree.map(np.testing.assert_array_equal, y, expected)


def test_what_is_no_norm():
    with pytest.raises(TypeError, match=r"`norm` must be a jbn.Norm"):
        converted(jbn.ghost)


def test_what_was_compiled_before_is_compiled_again_inside_and_not_outside():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.BatchNorm(use_running_average=False)(x)

    model = nn.jit(Block)()
    variables = init(model)
    apply = jax.jit(functools.partial(model.apply, **MUTABLE))
    before, _ = apply(variables, X)
    with converted():
        y, _ = apply(variables, X)
        np.testing.assert_array_equal(model.apply(variables, X, **MUTABLE)[0], y)
    assert abs(y - before).max() > 0.1  # Flax's E[x^2] - E[x]^2
    for function in (apply, functools.partial(model.apply, **MUTABLE)):
        np.testing.assert_array_equal(function(variables, X)[0], before)
