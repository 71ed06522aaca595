"""`choose`: the function of the platform that a program is compiled for."""

import jax
import jax.numpy as jnp
import pytest
from jax import export

from jbn.ops.platform import choose


def chosen(x):
    return choose(x, cpu=lambda x: x + 1, gpu=lambda x: x + 2, default=lambda x: x + 3)


def test_on_the_machine_at_hand():
    expected = {"cpu": 1, "gpu": 2}.get(jax.default_backend(), 3)
    assert chosen(jnp.float32(0)) == expected
    assert jax.vmap(chosen)(jnp.zeros(2)).tolist() == [expected] * 2
    assert jax.grad(chosen)(0.0) == 1


@pytest.mark.parametrize(("platform", "constant"), [("cpu", 1), ("cuda", 2), ("rocm", 2), ("tpu", 3)])
def test_in_the_program_of(platform, constant):
    lowered = export.export(jax.jit(chosen), platforms=(platform,))(jnp.float32(0))
    constants = [n for n in (1, 2, 3) if f"dense<{n}.0" in lowered.mlir_module()]
    assert constants == [constant]


def test_what_a_platform_has_nothing_of_its_own_for_is_the_default():
    assert choose(jnp.float32(0), default=lambda x: x + 3) == 3
