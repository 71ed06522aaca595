"""The networks of the memory benchmark, and what XLA says their compiled gradients need.

XLA reads its flags once in a process: `python -m benchmarks.compiled_memory SETTINGS` measures in one
of its own, started by `measure` with the flags of one of `COMPILERS`.
"""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.extend.core import Var

import jbn
from benchmarks import networks
from examples.resnet_model import resnet18

SEQUENTIAL = "--xla_cpu_enable_concurrency_optimized_scheduler=false"
COMPILERS = {
    "default": "",
    # Orders the program so that it needs little memory, but step by step: the gradients of kernels may
    # still wait for the end, and keep what they are made of. The CPU's default looks for independent
    # work instead, and keeps nearly everything.
    "sequential": SEQUENTIAL,
    # XLA:CPU drops the barriers that jax.checkpoint sets and merges what is computed again with what
    # was computed first, which undoes it. GPUs and TPUs keep them.
    "sequential, barriers kept": f"{SEQUENTIAL} --xla_disable_hlo_passes=cse_barrier_expander",
}
STACK, RELU_STACK, RESNET = "leaky_relu stack", "relu stack", "ResNet-18"
IMAGES = {STACK: (32, 32, 32), RELU_STACK: (32, 32, 32), RESNET: (32, 32, 3)}


class Case(NamedTuple):
    """A network, and a policy for `jax.checkpoint` around all of it."""

    model: nn.Module
    policy: Callable[..., Any] | None = None

    def loss(self) -> Callable[..., Any]:
        """(params, batch_stats, images, labels) -> (loss, new batch_stats)."""
        loss = networks.loss_of(self.model)
        return loss if self.policy is None else jax.checkpoint(loss, policy=self.policy)

    def gradient(self) -> Callable[..., Any]:
        """The same arguments -> ((loss, new batch_stats), gradient of the parameters)."""
        return jax.value_and_grad(self.loss(), has_aux=True)


def cases(quick: bool = False) -> dict[str, dict[str, Case]]:
    """By network and what is done about its norms; with `quick` narrow and shallow networks.

    jax's `dots_saveable` keeps what matrix products and convolutions compute, and nothing else.
    """
    flax, own = networks.NORMS["flax"], networks.NORMS["jbn"]
    in_place = functools.partial(own, norm=jbn.inplace("leaky_relu"))
    stack = functools.partial(networks.Stack, layers=3 if quick else 12)
    relu = functools.partial(stack, activation=nn.relu)
    small = {"stage_sizes": (1, 1), "features": 4} if quick else {}
    resnet = functools.partial(resnet18, **small)
    dots = jax.checkpoint_policies.dots_saveable
    return {
        STACK: {
            "flax": Case(stack(flax, nn.leaky_relu)),
            "jbn": Case(stack(own, nn.leaky_relu)),
            "jbn, in place": Case(stack(in_place, lambda y: y)),
        },
        RELU_STACK: {
            "flax": Case(relu(flax)),
            "flax, dots_saveable": Case(relu(flax), dots),
            "jbn": Case(relu(own)),
            "jbn, remat_policy": Case(relu(own), jbn.remat_policy),
        },
        RESNET: {
            "flax": Case(resnet(norm=flax)),
            "flax, dots_saveable per block": Case(resnet(norm=flax, remat_policy=dots)),
            "flax, dots_saveable": Case(resnet(norm=flax), dots),
            "jbn": Case(resnet(norm=own)),
            "jbn, remat_policy per block": Case(resnet(norm=own, remat_policy=jbn.remat_policy)),
            "jbn, remat_policy": Case(resnet(norm=own), jbn.remat_policy),
        },
    }


def arguments(model: nn.Module, shape: tuple[int, ...]) -> tuple:
    """Shapes and dtypes of the gradient's arguments."""
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    state = jax.eval_shape(lambda x: networks.create_state(model, x, 0), images)
    labels = jax.ShapeDtypeStruct(shape[:1], jnp.int32)
    return state.params, state.batch_stats, images, labels


def compiled_bytes(case: Case, shape: tuple[int, ...]) -> dict[str, int]:
    """What the compiled gradient needs; nothing is computed.

    Returns:
        "temp": what it allocates besides its arguments and results; "total": with those.
    """
    lowered = jax.jit(case.gradient()).lower(*arguments(case.model, shape))
    found: Any = lowered.compile().memory_analysis()
    sizes = found.temp_size_in_bytes, found.argument_size_in_bytes, found.output_size_in_bytes
    return {"temp": sizes[0], "total": sum(sizes) - found.alias_size_in_bytes}


def residual_bytes(function: Callable[..., Any], primals: Any, *others: Any) -> int:
    """What JAX keeps of a forward pass for the backward pass, besides the arguments.

    Counted before XLA sees anything: it is what a compiler may improve on, on any device.

    Args:
        function: of the primals and the others; returns a pair, whose second has no derivative.
        primals: what it is differentiated by.
        others: further arguments.
    """

    def backward(primals, *others):
        return jax.vjp(lambda p: function(p, *others), primals, has_aux=True)[1]

    traced = jax.make_jaxpr(backward)(primals, *others).jaxpr
    kept = {v for v in traced.outvars if isinstance(v, Var)} - {*traced.invars}
    shapes: list[Any] = [v.aval for v in kept]
    return sum(a.size * a.dtype.itemsize for a in shapes)


def largest_batch(total: Callable[[int], int], batch: int, budget: int) -> int:
    """The largest batch whose bytes are within the budget, 0 for none.

    Memory is affine in the batch size, nearly: two sizes say where to look, and further ones settle it.

    Args:
        total: bytes of a batch.
        batch: a size to start from.
        budget: in bytes.
    """
    sizes = {n: total(n) for n in (batch, 2 * batch)}
    slope = max((sizes[2 * batch] - sizes[batch]) / batch, 1)
    low, high = 0, 2**31  # fits, does not
    guess = batch + int((budget - sizes[batch]) / slope)
    while high - low > 1:
        guess = min(max(guess, low + 1), high - 1)
        size = sizes.get(guess) or total(guess)
        low, high = (guess, high) if size <= budget else (low, guess)
        guess += int((budget - size) // slope) or (1 if size <= budget else -1)
    return low


def measure(compiler: str, settings: dict[str, Any]) -> dict[str, dict[str, dict[str, int]]]:
    """`measured` under one of `COMPILERS`, in a process of its own."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} {COMPILERS[compiler]}".strip()
    # This process may hold a GPU's memory.
    environment = {**os.environ, "XLA_FLAGS": flags, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    command = [sys.executable, "-m", "benchmarks.compiled_memory", json.dumps(settings)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout)


def measured(
    quick: bool, batches: dict[str, int], budget: int | None
) -> dict[str, dict[str, dict[str, int]]]:
    """By network and case: `compiled_bytes`, and with a budget also the "largest batch"."""
    found: dict[str, dict[str, dict[str, int]]] = {}
    for network, rows in cases(quick).items():
        found[network] = {}
        for name, case in rows.items():
            image = IMAGES[network]
            sizes = compiled_bytes(case, (batches[network], *image))
            if budget:

                def total(batch, case=case, image=image):
                    return compiled_bytes(case, (batch, *image))["total"]

                sizes["largest batch"] = largest_batch(total, batches[network], budget)
            found[network][name] = sizes
    return found


def main(argv: Sequence[str]) -> None:
    """Prints as JSON what is measured with the settings, JSON as well, in the only argument."""
    print(json.dumps(measured(**json.loads(argv[0]))))


if __name__ == "__main__":
    main(sys.argv[1:])
