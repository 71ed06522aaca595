"""Batch norm in pure functions: a network of dense layers on handwritten digits, without a framework.

    python examples/digits_functional.py

Needs no other file: copy it and go on from there. Parameters and running statistics are pytrees that go
in and come out, so that an epoch is one `lax.scan`. The network is trained twice, with an exponential
and with a cumulative running average, from which only the evaluation takes its statistics: prints the
test accuracy after each epoch, where the exponential one, with momentum 0.99, needs time to arrive.
"""

import argparse

parser = argparse.ArgumentParser(description="Batch norm in pure functions, two kinds of average.")
parser.add_argument("--epochs", type=int, default=10, help="default: %(default)s")
parser.add_argument("--learning-rate", type=float, default=1e-3, help="Adam's; default: %(default)s")
if __name__ == "__main__":
    parser.parse_args()  # before the imports that take seconds, so that --help does not

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import jbn

BATCH_SIZE = 64
SIZES = (64, 128, 128, 10)
MOMENTA = {"momentum 0.99": 0.99, "cumulative": None}


class State(NamedTuple):
    """What a step of training carries on."""

    params: Any
    batch_stats: Any
    opt_state: Any


def create_state(optimizer: optax.GradientTransformation, momentum: float | None) -> State:
    """The state before the first step."""
    initializer = jax.nn.initializers.he_normal()
    keys = jax.random.split(jax.random.key(0), len(SIZES) - 1)
    kernels = [initializer(k, s) for k, s in zip(keys, itertools.pairwise(SIZES), strict=True)]
    norms, batch_stats = zip(*(jbn.init(size, momentum=momentum) for size in SIZES[1:-1]), strict=True)
    params = {"kernels": kernels, "norms": norms, "bias": jnp.zeros(SIZES[-1])}
    return State(params, batch_stats, optimizer.init(params))


def apply(params: Any, batch_stats: Any, x: jax.Array, **options: Any) -> tuple[jax.Array, Any]:
    """Images (N, 64) to logits (N, 10), and the new running statistics; the options are of jbn."""
    *hidden, output = params["kernels"]
    updated = []
    for kernel, norm, stats in zip(hidden, params["norms"], batch_stats, strict=True):
        # No bias before batch norm, which subtracts it with the mean and has its own.
        x, stats = jbn.batch_norm(x @ kernel, norm, stats, **options)
        x = jax.nn.relu(x)
        updated.append(stats)
    return x @ output + params["bias"], tuple(updated)


@functools.partial(jax.jit, static_argnums=(0, 1))
def train_epoch(optimizer: Any, momentum: float | None, state: State, minibatches: Any) -> State:
    """The state after a step on each of the minibatches, which are stacked along the first axis."""

    def step(state, minibatch):
        images, labels = minibatch

        def loss_fn(params):
            logits, batch_stats = apply(
                params, state.batch_stats, images, train=True, momentum=momentum
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), batch_stats

        grads, batch_stats = jax.grad(loss_fn, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state)
        return State(optax.apply_updates(state.params, updates), batch_stats, opt_state), None

    return jax.lax.scan(step, state, minibatches)[0]


@jax.jit
def accuracy(state: State, images: jax.Array, labels: jax.Array) -> jax.Array:
    """By the running statistics, so that the answer for an image does not depend on the others."""
    logits, _ = apply(state.params, state.batch_stats, images, train=False)
    return jnp.mean(logits.argmax(-1) == labels)


def main(argv: list[str] | None = None) -> dict[str, State]:
    """Trains with each kind of average; returns the states."""
    args = parser.parse_args(argv)
    pixels, labels = load_digits(return_X_y=True)
    images = np.float32(pixels) / 16
    split = train_test_split(images, labels, test_size=0.2, stratify=labels, random_state=1)
    images, test_images, labels, test_labels = map(jnp.asarray, split)
    optimizer = optax.adam(args.learning_rate)
    states = {name: create_state(optimizer, momentum) for name, momentum in MOMENTA.items()}
    rng, steps = np.random.default_rng(0), len(images) // BATCH_SIZE
    print("epoch", *states, sep="  ")
    for epoch in range(1, args.epochs + 1):
        order = rng.permutation(len(images))[: steps * BATCH_SIZE].reshape(steps, BATCH_SIZE)
        for name, momentum in MOMENTA.items():
            minibatches = images[order], labels[order]
            states[name] = train_epoch(optimizer, momentum, states[name], minibatches)
        cells = [f"{accuracy(s, test_images, test_labels):{len(n)}.1%}" for n, s in states.items()]
        print(f"{epoch:5}", *cells, sep="  ")
    return states


if __name__ == "__main__":
    main()
