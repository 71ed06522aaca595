"""What only a GPU can show. Skipped elsewhere: no test here has a substitute."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jbn
import reference

pytestmark = pytest.mark.gpu
SHAPE = (64, 28, 28, 64)
ROWS = {"N(0, 1)": (0, 1), "N(7, 1)": (7, 1), "N(1e5, 1)": (1e5, 1), "N(1e3, 1e-2)": (1e3, 1e-2)}
PARAMS, BATCH_STATS = jbn.init(SHAPE[-1])


def step(x, params, dy):
    def forward(x, params):
        return jbn.batch_norm(x, params, BATCH_STATS, train=True)

    y, vjp, updated = jax.vjp(forward, x, params, has_aux=True)
    return y, vjp(dy), updated


@pytest.mark.parametrize("row", ROWS)
def test_the_promise_of_the_readme(row):
    mean, deviation = ROWS[row]
    rng = np.random.default_rng(0)
    x = (mean + deviation * rng.standard_normal(SHAPE)).astype(np.float32)
    dy = rng.standard_normal(SHAPE).astype(np.float32)
    y, (dx, dparams), _ = jax.jit(step)(x, PARAMS, dy)
    r = reference.batch_norm(x, PARAMS)
    assert np.max(np.abs(y - r) / np.maximum(1, np.abs(r))) <= 1e-6
    expected_dx, expected_dparams = reference.backward(dy, x, PARAMS)
    expected = {"dx": expected_dx, **expected_dparams}
    for name, gradient in {"dx": dx, **dparams}.items():
        error = np.max(np.abs(gradient - expected[name]))
        assert error <= 1e-5 * np.max(np.abs(expected[name])), name


def test_one_repeated_value_gives_exactly_bias():
    x = jnp.full(SHAPE, 1.234567e7)
    y, _ = jbn.batch_norm(x, {"bias": jnp.full(64, 0.3)}, BATCH_STATS, train=True)
    np.testing.assert_array_equal(y, np.full(SHAPE, 0.3, np.float32))


def test_the_program_has_no_branch_and_the_backward_pass_no_copy_of_x():
    x = jax.ShapeDtypeStruct(SHAPE, jnp.bfloat16)
    compiled = jax.jit(step).lower(x, PARAMS, x).compile()
    hlo = compiled.as_text()
    assert not re.search(r" (conditional|while)\(", hlo)
    assert not re.search(r"= f32\[64,28,28,64\]\S* (?!parameter)", hlo[hlo.index("ENTRY") :])
    assert compiled.memory_analysis().temp_size_in_bytes < 2 * np.prod(SHAPE)
