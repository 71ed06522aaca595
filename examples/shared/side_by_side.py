"""Many trainings of a network in pure functions, side by side: by `jax.vmap`, the epoch a `lax.scan`.

Each has its own initial parameters and its own order of the images. There are no convolutions here,
which XLA runs many times slower inside a loop on a CPU.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from .data import minibatches

# (params, batch_stats, minibatch) -> (loss, batch_stats)
Loss = Callable[[Any, Any, Any], tuple[jax.Array, Any]]


class State(NamedTuple):
    """What a step of training carries on; of all the trainings, stacked along the first axis."""

    params: Any
    batch_stats: Any
    opt_state: Any


def create(
    init: Callable[[jax.Array], tuple[Any, Any]],
    optimizer: optax.GradientTransformation,
    seeds: Sequence[int],
) -> State:
    """The states before the first step; `init` makes parameters and statistics of a random key."""

    def one(seed):
        params, batch_stats = init(jax.random.key(seed))
        return State(params, batch_stats, optimizer.init(params))

    return jax.vmap(one)(np.array(seeds, np.uint32))


def orders(size: int, batch_size: int, epochs: int, seeds: Sequence[int]) -> Iterable[np.ndarray]:
    """For each epoch the minibatches of each seed, int32 (seeds, steps, batch_size)."""
    each = (minibatches(size, batch_size, epochs, seed) for seed in seeds)
    return map(np.stack, zip(*each, strict=True))


@functools.partial(jax.jit, static_argnums=(0, 1))
def epoch(
    loss: Loss, optimizer: optax.GradientTransformation, states: State, order: Any, arrays: Any
) -> State:
    """The states after a step on each minibatch: those rows of the arrays that `order` names."""

    def step(state, batch):
        minibatch = jax.tree.map(lambda v: v[batch], arrays)
        grads, batch_stats = jax.grad(loss, has_aux=True)(state.params, state.batch_stats, minibatch)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        return State(optax.apply_updates(state.params, updates), batch_stats, opt_state), None

    return jax.vmap(lambda state, batches: jax.lax.scan(step, state, batches)[0])(states, order)


def train(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    states: State,
    order: Iterable[np.ndarray],
    arrays: Any,
    evaluate: Callable[[State], Any],
    bar: tqdm,
) -> Any:
    """All epochs of all trainings.

    Args:
        loss: (params, batch_stats, minibatch) -> (loss, batch_stats).
        optimizer: of the states.
        states: from `create`.
        order: from `orders`.
        arrays: pytree of arrays (N, ...); a minibatch is the same pytree of (batch_size, ...).
        evaluate: states -> pytree of arrays, called before the first epoch and after each.
        bar: moved on by one per epoch.

    Returns:
        What `evaluate` returned, stacked along a first axis of length epochs + 1.
    """
    record = [jax.device_get(evaluate(states))]
    for batches in order:
        states = epoch(loss, optimizer, states, batches, arrays)
        record.append(jax.device_get(evaluate(states)))
        bar.update()
    return jax.tree.map(lambda *values: np.stack(values), *record)


def cross_entropy(logits: jax.Array, labels: jax.Array, weights: Any = None) -> jax.Array:
    """The mean over the images, or the weighted one."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.average(losses, weights=weights)


def accuracy(logits: jax.Array, labels: Any) -> jax.Array:
    """The share of the images whose largest logit is their label's."""
    return jnp.mean(jnp.argmax(logits, axis=-1) == labels, dtype=jnp.float32)
