"""Which dtype the arithmetic and the output are in, in strict mode too."""

import jax.numpy as jnp
import pytest

from jbn import _dtypes


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        (("float16",), "float32"),
        (("bfloat16", "float16"), "float32"),
        (("float32", "complex64"), "complex64"),
        ((), "float32"),
    ],
)
def test_promote_is_float32_at_least_and_works_in_strict_mode(dtypes, expected):
    assert _dtypes.promote(*dtypes) == jnp.dtype(expected)


def test_promote_keeps_float64(x64):
    assert _dtypes.promote("float64", "bfloat16") == jnp.float64


def test_real_of_complex():
    assert _dtypes.real("complex64") == jnp.float32
    assert _dtypes.real("float32") == jnp.float32


def test_output_is_that_of_x_or_as_asked_for_and_stays_complex():
    assert _dtypes.output(jnp.ones(1, jnp.bfloat16), None) == jnp.bfloat16
    assert _dtypes.output(jnp.ones(1, jnp.float32), "float16") == jnp.float16
    assert _dtypes.output(jnp.ones(1, jnp.complex64), "float32") == jnp.complex64
