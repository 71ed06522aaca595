"""What the examples in flax.linen share: the state, a step of training, the evaluation, and a run."""

import argparse
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from tqdm import tqdm

import data
import report

# Makes an optimizer whose state does not depend on the learning rate it is given.
Optimizer = Callable[[Any], optax.GradientTransformation]


class State(NamedTuple):
    """What a step of training carries on."""

    params: Any
    batch_stats: Any
    opt_state: optax.OptState


def create_state(
    model: nn.Module, images: np.ndarray, seed: int, optimizer: Optimizer = optax.adam
) -> State:
    """Initial parameters, running statistics and optimizer state."""
    variables = model.init(jax.random.key(seed), images[:1], train=False)
    params = variables["params"]
    return State(params, variables.get("batch_stats", {}), optimizer(0.0).init(params))


@functools.partial(jax.jit, static_argnames=("model", "optimizer", "train"))
def train_step(
    state: State,
    images: jax.Array,
    labels: jax.Array,
    *,
    model: nn.Module,
    learning_rate: float,
    optimizer: Optimizer = optax.adam,
    train: bool = True,
) -> tuple[State, jax.Array]:
    """One step on a minibatch: the new state, and the loss before it.

    Without `train`, batch norm uses its running statistics and leaves them as they are.
    """

    def loss(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, updated = model.apply(variables, images, train=train, mutable=["batch_stats"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.mean(losses), updated.get("batch_stats", {})

    (value, batch_stats), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
    updates, opt_state = optimizer(learning_rate).update(grads, state.opt_state, state.params)
    return State(optax.apply_updates(state.params, updates), batch_stats, opt_state), value


@functools.partial(jax.jit, static_argnames="model")
def predict(state: State, images: jax.Array, *, model: nn.Module) -> Any:
    """Logits, with the running statistics: an image's do not depend on the others in its batch."""
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    return model.apply(variables, images, train=False)


def train(
    model: nn.Module,
    name: str,
    learning_rate: float,
    seed: int,
    digits: data.Digits,
    args: argparse.Namespace,
    bar: tqdm,
    **own: int,
) -> tuple[State, report.Run]:
    """One run with Adam: the final state and the record; `own` is for `report.record`."""
    state = create_state(model, digits.train_images, seed)
    step = functools.partial(train_step, model=model, learning_rate=learning_rate)
    logits = functools.partial(predict, model=model)
    return report.record(name, learning_rate, state, step, logits, digits, args, bar, seed=seed, **own)
