"""The memory that the gradient of a stack of layers takes besides its arguments and results."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

import jbn
from benchmarks.programs import chips
from benchmarks.programs.networks import DTYPES, arguments, gradient_of, norm

# Of a TPU the arrays are to be larger than the memory of the chip, which is not counted.
SHAPES = {"gpu": (64, 56, 56, 64), "tpu": (256, 56, 56, 64)}
LAYERS, QUICK = 12, 4


class Stack(nn.Module):
    """3x3 convolution, norm, activation, and again; the mean over the positions, and logits."""

    norm: Callable[..., nn.Module]
    activation: Callable[[jax.Array], jax.Array]
    layers: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(N, H, W, C) to logits (N, 10)."""
        for _ in range(self.layers):
            x = nn.Conv(x.shape[-1], (3, 3), use_bias=False, dtype=self.dtype)(x)
            x = self.activation(self.norm(use_running_average=False)(x))
        return nn.Dense(10)(jnp.mean(x, (1, 2), dtype=jnp.float32))


class Case(NamedTuple):
    """A norm, what follows it, a policy for `jax.checkpoint`, and what it is compared with."""

    norm: str
    activation: Callable[[jax.Array], jax.Array]
    in_place: bool = False
    policy: Callable[..., Any] | None = None
    against: str | None = None


def _identity(y: jax.Array) -> jax.Array:
    return y


CASES = {
    "flax, leaky_relu": Case("flax", nn.leaky_relu),
    "jbn, leaky_relu": Case("jbn", nn.leaky_relu, against="flax, leaky_relu"),
    "jbn in place": Case("jbn", _identity, in_place=True, against="flax, leaky_relu"),
    "flax, relu": Case("flax", nn.relu),
    "jbn, relu": Case("jbn", nn.relu, against="flax, relu"),
    "jbn, relu, remat_policy": Case("jbn", nn.relu, policy=jbn.remat_policy, against="flax, relu"),
}


def temporary(chip: str, case: Case, layers: int, dtype: str) -> float:
    """In tensors of the size of one layer's output."""
    made = norm(case.norm, dtype)
    if case.in_place:
        made = functools.partial(made, norm=jbn.inplace("leaky_relu"))
    model = Stack(made, case.activation, layers, jnp.dtype(dtype))
    shape = SHAPES[chips.PLATFORMS[chip]]
    gradient = gradient_of(model, policy=case.policy)
    program = chips.compiled(chip, gradient, *arguments(model, shape, dtype))
    once = math.prod(shape) * jnp.dtype(dtype).itemsize
    return program.memory_analysis().temp_size_in_bytes / once


def measured(chip: str, quick: bool) -> dict[str, Any]:
    """By dtype and case: the tensors, and how many times what it is compared with that is."""
    found: dict[str, Any] = {}
    for dtype in DTYPES:
        tensors = {
            name: temporary(chip, case, QUICK if quick else LAYERS, dtype)
            for name, case in CASES.items()
        }
        found[dtype] = {
            name: {
                "tensors": tensors[name],
                "against flax": tensors[name] / tensors[case.against or name],
            }
            for name, case in CASES.items()
        }
    return found
