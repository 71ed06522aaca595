"""What the examples in pure functions share: a dense layer, a step of Adam, all seeds at once.

Every seed has its own initial parameters and its own order of the images. `jax.vmap` trains them side
by side, and `jax.lax.scan` runs the steps of an epoch in one call: there are no convolutions here,
which XLA runs many times slower inside a loop on a CPU.
"""

import argparse
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

import data
import trials


class State(NamedTuple):
    """What a step of training carries on; the key is for networks that draw random numbers."""

    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    key: jax.Array


def create_state(params: Any, batch_stats: Any, key: jax.Array) -> State:
    """The state before the first step."""
    # Adam's state does not depend on the learning rate.
    return State(params, batch_stats, optax.adam(0.0).init(params), key)


def dense(key: jax.Array, inputs: int, outputs: int) -> dict[str, jax.Array]:
    """Initial parameters of a dense layer."""
    kernel = jax.nn.initializers.he_normal()(key, (inputs, outputs))
    return {"kernel": kernel, "bias": jnp.zeros((1, outputs))}


def apply_dense(params: Any, x: jax.Array) -> jax.Array:
    """(N, inputs) to (N, outputs)."""
    return x @ params["kernel"] + params["bias"]


def loss_and_accuracy(
    logits: jax.Array, labels: jax.Array, weights: Any = None
) -> tuple[jax.Array, jax.Array]:
    """The mean cross entropy, weighted if asked, and the share of the images that are recognized."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    loss = jnp.average(losses, weights=weights)
    return loss, jnp.mean(jnp.argmax(logits, axis=-1) == labels)


def adam_step(state: State, grads: Any, batch_stats: Any, learning_rate: float) -> State:
    """The state after one step down `grads`, with the running statistics of that step."""
    updates, opt_state = optax.adam(learning_rate).update(grads, state.opt_state)
    params = optax.apply_updates(state.params, updates)
    return state._replace(params=params, batch_stats=batch_stats, opt_state=opt_state)


def create_states(create: Callable[[Any], State], args: argparse.Namespace) -> State:
    """The states of all the seeds that the flags name, stacked; `create` makes that of one seed."""
    return jax.vmap(create)(np.array(trials.seeds(args), np.uint32))


def orders(size: int, args: argparse.Namespace) -> np.ndarray:
    """Each seed's order of `size` images, int32 (epochs, seeds, steps, batch_size)."""
    options = args.batch_size, args.epochs
    each = [list(data.shuffled_epochs(size, *options, seed)) for seed in trials.seeds(args)]
    return np.stack(each, axis=1)


@functools.partial(jax.jit, static_argnames="train_step")
def epoch(
    train_step: Callable[..., State], states: State, order: Any, arrays: Any, *options: Any
) -> State:
    """One epoch of every seed.

    Args:
        train_step: (state, minibatch, *options) -> state.
        states: of all seeds, stacked.
        order: (seeds, steps, batch_size), from `orders`.
        arrays: pytree of arrays (N, ...); a minibatch is the same pytree of (batch_size, ...).
        options: further arguments of `train_step`, the same for every seed and step.

    Returns:
        The new states.
    """

    def step(state, batch):
        return train_step(state, jax.tree.map(lambda v: v[batch], arrays), *options), None

    return jax.vmap(lambda state, batches: jax.lax.scan(step, state, batches)[0])(states, order)


def train(
    train_step: Callable[..., State],
    states: State,
    order: np.ndarray,
    arrays: Any,
    *options: Any,
    evaluate: Callable[[State], Any],
    bar: tqdm,
) -> tuple[State, Any]:
    """All epochs of every seed.

    Args:
        train_step, states, arrays, options: as in `epoch`.
        order: from `orders`.
        evaluate: states -> pytree of arrays (seeds, ...), called after every epoch.
        bar: moved on by one per epoch.

    Returns:
        The final states, and what `evaluate` returned, stacked: (epochs, seeds, ...).
    """
    record = []
    for batches in order:
        states = epoch(train_step, states, batches, arrays, *options)
        record.append(jax.device_get(evaluate(states)))
        bar.update()
    return states, jax.tree.map(lambda *values: np.stack(values), *record)
