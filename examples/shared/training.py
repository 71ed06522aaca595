"""Training of a network in flax.linen or flax.nnx: its state, a step, the evaluation, a whole run."""

import argparse
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import nnx
from tqdm import tqdm

from .data import Digits
from .runs import Run, record

# Makes an optimizer whose state does not depend on the learning rate it is given.
Optimizer = Callable[[Any], optax.GradientTransformation]


@dataclasses.dataclass(frozen=True)
class Linen:
    """A network in flax.linen as two pure functions; its `__call__` takes the images and `train`."""

    model: nn.Module

    def init(self, key: jax.Array, images: Any) -> tuple[Any, Any]:
        """Parameters and running statistics."""
        variables = self.model.init(key, images, train=False)
        return variables["params"], variables.get("batch_stats", {})

    def apply(self, params: Any, batch_stats: Any, images: Any, *, train: bool) -> tuple[Any, Any]:
        """Logits and running statistics."""
        variables = {"params": params, "batch_stats": batch_stats}
        logits, updated = self.model.apply(variables, images, train=train, mutable=["batch_stats"])
        return logits, updated.get("batch_stats", {})


@dataclasses.dataclass(frozen=True)
class NNX:
    """The same of a network in flax.nnx, which `create` makes of random keys."""

    create: Callable[[nnx.Rngs], nnx.Module]

    def init(self, key: jax.Array, images: Any) -> tuple[Any, Any]:
        """Parameters and running statistics."""
        del images
        _, params, batch_stats = nnx.split(self.create(nnx.Rngs(key)), nnx.Param, nnx.BatchStat)
        return params, batch_stats

    def apply(self, params: Any, batch_stats: Any, images: Any, *, train: bool) -> tuple[Any, Any]:
        """Logits and running statistics."""
        structure = nnx.graphdef(nnx.eval_shape(lambda: self.create(nnx.Rngs(0))))
        model: Any = nnx.merge(structure, params, batch_stats, copy=True)
        model.set_attributes(use_running_average=not train, raise_if_not_found=False)
        return model(images), nnx.state(model, nnx.BatchStat)


Network = Linen | NNX


class State(NamedTuple):
    """What a step of training carries on."""

    params: Any
    batch_stats: Any
    opt_state: Any


def create_state(network: Network, images: Any, seed: int, optimizer: Optimizer = optax.adam) -> State:
    """Initial parameters, running statistics and optimizer state, for images like these."""
    params, batch_stats = network.init(jax.random.key(seed), images[:1])
    return State(params, batch_stats, optimizer(0.0).init(params))


@functools.partial(jax.jit, static_argnames=("network", "optimizer", "train", "axis_name"))
def train_step(
    state: State,
    images: Any,
    labels: Any,
    *,
    network: Network,
    learning_rate: Any,
    optimizer: Optimizer = optax.adam,
    train: bool = True,
    axis_name: str | None = None,
) -> tuple[State, jax.Array]:
    """One step on a minibatch: the new state, and the loss before it.

    Without `train`, batch norm uses its running statistics and leaves them as they are. Where there is
    an `axis_name`, images and labels are one device's, and the gradients and the loss are averaged over
    the devices, whether or not the layers are synchronized.
    """
    params = state.params
    if axis_name is not None:
        # The gradient of a device's own copy. That of shared parameters jax.shard_map would sum over
        # the devices unasked, and jax.pmap would not.
        params = jax.lax.pcast(params, axis_name, to="varying")

    def loss(params):
        logits, batch_stats = network.apply(params, state.batch_stats, images, train=train)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.mean(losses), batch_stats

    (value, batch_stats), grads = jax.value_and_grad(loss, has_aux=True)(params)
    if axis_name is not None:
        value, grads = jax.lax.pmean((value, grads), axis_name)
    updates, opt_state = optimizer(learning_rate).update(grads, state.opt_state, state.params)
    return State(optax.apply_updates(state.params, updates), batch_stats, opt_state), value


@functools.partial(jax.jit, static_argnames="network")
def predict(state: State, images: Any, *, network: Network) -> jax.Array:
    """Logits, with the running statistics: an image's do not depend on the others in its batch."""
    return network.apply(state.params, state.batch_stats, images, train=False)[0]


def train(
    network: Network,
    digits: Digits,
    args: argparse.Namespace,
    bar: tqdm,
    *,
    seed: int,
    learning_rate: float,
    optimizer: Optimizer = optax.adam,
    **own: int,
) -> tuple[State, Run]:
    """One run: the final state and the record; `own` are epochs and batch size that `args` has not."""
    state = create_state(network, digits.train_images, seed, optimizer)
    options = {"network": network, "learning_rate": learning_rate, "optimizer": optimizer}
    step = functools.partial(train_step, **options)
    logits = functools.partial(predict, network=network)
    return record(state, step, logits, digits, args, bar, seed=seed, **own)
