"""`jbn.tools.activation_percentiles`: the numbers, and how they are recorded in training."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import jbn

percentiles = jbn.tools.activation_percentiles
RNG = np.random.default_rng(0)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int32"])
@pytest.mark.parametrize(("shape", "axis"), [((9, 4), -1), ((5, 4, 3), 1), ((2, 3, 4, 5), (1, -1))])
def test_are_those_of_numpy(shape, axis, dtype):
    x = jnp.asarray(10 * RNG.normal(size=shape), dtype)
    reduced = tuple(a for a in range(len(shape)) if a not in np.atleast_1d(axis) % len(shape))
    expected = np.percentile(np.asarray(x, np.float64), (15, 50, 85), axis=reduced)
    actual = percentiles(x, axis=axis)
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_of_a_normal_distribution_are_its_deviations():
    x = 3 + 2 * RNG.standard_normal((100_000, 2))
    np.testing.assert_allclose(percentiles(x), np.outer([0.93, 3, 5.07], [1, 1]), atol=0.05)


def test_others(x64):
    x = jnp.asarray(RNG.normal(size=(50, 3)))
    actual = percentiles(x, (0, 100))
    np.testing.assert_array_equal(actual, [x.min(0), x.max(0)])
    assert actual.dtype == jnp.float64 and percentiles(x, ()).shape == (0, 3)


def test_a_unit_with_nan_is_nan_and_no_other():
    x = jnp.ones((5, 3)).at[2, 1].set(jnp.nan)
    np.testing.assert_array_equal(np.isnan(percentiles(x)), [[False, True, False]] * 3)


def test_recorded_in_a_scan():
    """Of a training that moves x by known steps."""
    x = jnp.asarray(RNG.normal(size=(50, 3)), jnp.float32)
    optimizer = optax.sgd(1.0)

    def step(state, _):
        bias, opt_state = state
        value, grads = percentiles(x + bias), jax.grad(lambda b: jnp.sum(x + b) / 50)(bias)
        updates, opt_state = optimizer.update(grads, opt_state)
        return (optax.apply_updates(bias, updates), opt_state), value

    bias = jnp.zeros((1, 3))
    _, recorded = jax.lax.scan(step, (bias, optimizer.init(bias)), length=4)
    expected = np.asarray(percentiles(x)) - np.arange(4)[:, None, None]
    np.testing.assert_allclose(recorded, expected, atol=1e-5)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = jbn.linen.BatchNorm(use_running_average=False)(x)
        self.sow("intermediates", "inputs", percentiles(x))
        return nn.relu(x)


class NNX(nnx.Module):
    def __init__(self):
        self.norm = jbn.nnx.BatchNorm(3, rngs=nnx.Rngs(0))

    def __call__(self, x):
        x = self.norm(x)
        self.sow(nnx.Intermediate, "inputs", percentiles(x))
        return nnx.relu(x)


@pytest.mark.usefixtures("standard_promotion")
class TestInsideOfModels:
    x = jnp.asarray(RNG.normal(3, 2, size=(50, 3)), jnp.float32)
    normalized, _ = jbn.batch_norm(x, *jbn.init(3), train=True)
    expected = percentiles(normalized)

    def test_sown_in_linen(self):
        variables = Linen().init(jax.random.key(0), self.x)
        apply = jax.jit(lambda v, x: Linen().apply(v, x, mutable=["batch_stats", "intermediates"]))
        _, updated = apply(
            {"params": variables["params"], "batch_stats": variables["batch_stats"]}, self.x
        )
        (recorded,) = updated["intermediates"]["inputs"]
        np.testing.assert_allclose(recorded, self.expected, atol=1e-6)

    def test_captured_in_linen_without_a_change_of_the_model(self):
        """The outputs of all batch norms, which are the inputs of the nonlinearities."""
        variables = Linen().init(jax.random.key(0), self.x)
        is_norm = lambda module, _: isinstance(module, jbn.linen.BatchNorm)  # noqa: E731
        _, updated = Linen().apply(
            {k: variables[k] for k in ("params", "batch_stats")},
            self.x,
            mutable=["batch_stats", "intermediates"],
            capture_intermediates=is_norm,
        )
        captured = updated["intermediates"]["BatchNorm_0"]
        recorded = jax.tree.map(percentiles, captured)["__call__"][0]
        np.testing.assert_allclose(recorded, self.expected, atol=1e-6)

    def test_sown_in_nnx(self):
        model = NNX()
        run = nnx.jit(lambda model, x: nnx.capture(model, nnx.Intermediate)(x))
        _, captured = run(model, self.x)
        (recorded,) = captured["inputs"].get_value()
        np.testing.assert_allclose(recorded, self.expected, atol=1e-6)


class TestErrors:
    @pytest.mark.parametrize("wrong", [(-1,), (15, 101), (np.nan,)])
    def test_percentiles(self, wrong):
        with pytest.raises(ValueError, match=r"`percentiles` must be in \[0, 100\], got \("):
            percentiles(jnp.ones((2, 3)), wrong)

    def test_x(self):
        with pytest.raises(TypeError, match="`x` must be real to have percentiles, got complex64"):
            percentiles(jnp.ones((2, 3), jnp.complex64))
        with pytest.raises(ValueError, match=r"`x` must have values, got an array of shape \(0, 3\)"):
            percentiles(jnp.ones((0, 3)))
        with pytest.raises(ValueError, match=r"`axis` names the feature axis .*, got 2"):
            percentiles(jnp.ones((2, 3)), axis=2)
