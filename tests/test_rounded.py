"""x is as rounded as its dtype says, whatever the compiler knows of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jbn
import reference

MADE_BY = {
    "a product": lambda z: z * np.asarray(1.1, z.dtype),
    "a quotient": lambda z: z / np.asarray(0.9, z.dtype),
    "a square": lambda z: z * z,
    "a sum": lambda z: z + np.asarray(0.37, z.dtype),
}


def wide(v):
    return np.asarray(jnp.asarray(v, jnp.float32), np.float64)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shape", [(100, 3), (5000, 3)], ids=str)
@pytest.mark.parametrize("maker", MADE_BY)
def test_what_the_same_program_makes_is_as_rounded_as_what_it_is_given(maker, shape, dtype):
    """XLA would compute with digits of x that x does not have."""
    rng = np.random.default_rng(0)
    # Constant, narrow, far off and usual channels are all of one program.
    deviation, mean = np.array([0, 1e-2, 1]), np.array([7.123, 100, 3])
    z = jnp.asarray(mean + deviation * rng.standard_normal(shape), dtype)
    dy = jnp.asarray(rng.standard_normal(shape), dtype)
    params, stats = jbn.init(3)
    made = MADE_BY[maker]

    @jax.jit
    def step(z, params):
        def output(x, params):
            return jbn.batch_norm(x, params, stats, train=True)

        y, vjp, new_stats = jax.vjp(output, made(z), params, has_aux=True)
        return y, vjp(dy), new_stats

    y, (dx, dparams), new_stats = step(z, params)
    x = wide(jax.jit(made)(z))
    unit = float(jnp.finfo(dtype).eps)
    mean, var, _ = reference.moments(x)
    np.testing.assert_allclose(new_stats["mean"], 0.01 * mean, rtol=2e-6)
    np.testing.assert_allclose(new_stats["var"], 0.99 + 0.01 * var, rtol=2e-6)
    expected = reference.batch_norm(x, {})
    assert np.all(np.abs(wide(y) - expected) <= 4 * unit * np.maximum(1, np.abs(expected)))
    np.testing.assert_array_equal(y[:, 0], 0)
    expected, expected_dparams = reference.backward(wide(dy), x, params)
    largest = np.abs(expected).max(0)
    assert np.all(np.abs(wide(dx) - expected).max(0) <= 4 * unit * largest)
    assert np.all(np.abs(dparams["scale"] - expected_dparams["scale"]) <= 4e-6 * len(x) ** 0.5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_what_is_subnormal_in_half_precision_is_not_lost(dtype):
    x = jnp.asarray(4e-6 * np.random.default_rng(0).standard_normal((100, 3)), dtype)
    _, stats = jbn.batch_norm(x, {}, jbn.init(3)[1], train=True, momentum=0.0)
    mean, var, _ = reference.moments(wide(x))
    np.testing.assert_allclose(stats["mean"], mean, rtol=2e-6, atol=2e-6 * var.max() ** 0.5)
    np.testing.assert_allclose(stats["var"], var, rtol=2e-6)
