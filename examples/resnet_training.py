"""A step of training of a network in flax.linen or flax.nnx, on images that are moved at random."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import nnx

import augmentation


class Network(NamedTuple):
    """A network as pure functions, and the images it takes.

    Attributes:
        init: (random key, images) -> (params, batch_stats).
        apply: (params, batch_stats, images, train) -> (logits, batch_stats).
        size: height and width of the images.
        channels: of the images.
    """

    init: Callable[..., Any]
    apply: Callable[..., Any]
    size: int
    channels: int


def linen_network(model: nn.Module, size: int = 32, channels: int = 1) -> Network:
    """The functions of a network in flax.linen."""

    def init(key, images):
        variables = model.init(key, images, train=False)
        return variables["params"], variables.get("batch_stats", {})

    def apply(params, batch_stats, images, train):
        variables = {"params": params, "batch_stats": batch_stats}
        logits, updated = model.apply(variables, images, train=train, mutable=["batch_stats"])
        return logits, updated.get("batch_stats", {})

    return Network(init, apply, size, channels)


def nnx_network(create: Callable[[nnx.Rngs], nnx.Module], size: int = 32, channels: int = 1) -> Network:
    """The functions of the network in flax.nnx that `create` makes."""
    structure = nnx.graphdef(nnx.eval_shape(lambda: create(nnx.Rngs(0))))

    def init(key, images):
        del images
        return nnx.split(create(nnx.Rngs(key)), nnx.Param, nnx.BatchStat)[1:]

    def apply(params, batch_stats, images, train):
        model: Any = nnx.merge(structure, params, batch_stats, copy=True)
        model.set_attributes(use_running_average=not train, raise_if_not_found=False)
        return model(images), nnx.state(model, nnx.BatchStat)

    return Network(init, apply, size, channels)


class State(NamedTuple):
    """What a step of training carries on; `key` is for moving the images."""

    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    key: jax.Array


@functools.partial(jax.jit, static_argnames="network")
def create_state(seed: int, *, network: Network) -> State:
    """Initial parameters, running statistics and optimizer state."""
    init_key, key = jax.random.split(jax.random.key(seed))
    images = jnp.zeros((1, network.size, network.size, network.channels))
    params, batch_stats = network.init(init_key, images)
    # Adam's state does not depend on the learning rate.
    return State(params, batch_stats, optax.adam(0.0).init(params), key)


@functools.partial(jax.jit, static_argnames=("network", "axis_name"))
def train_step(
    state: State,
    images: jax.Array,
    labels: jax.Array,
    *,
    network: Network,
    learning_rate: float,
    axis_name: str | None = None,
) -> tuple[State, jax.Array]:
    """One step of Adam on a minibatch: the new state, and the loss before it.

    Where there is an `axis_name`, `images` and `labels` are one device's; the gradients and the loss
    are averaged over the devices.
    """
    key, view_key = jax.random.split(state.key)
    params = state.params
    if axis_name is not None:
        view_key = jax.random.fold_in(view_key, jax.lax.axis_index(axis_name))
        # The gradient of a device's own copy: that of shared parameters would be a sum already.
        params = jax.lax.pcast(params, axis_name, to="varying")
    views = jnp.repeat(
        augmentation.random_views(view_key, images, network.size), network.channels, axis=-1
    )

    def loss(params):
        logits, batch_stats = network.apply(params, state.batch_stats, views, True)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.mean(losses), batch_stats

    (value, batch_stats), grads = jax.value_and_grad(loss, has_aux=True)(params)
    if axis_name is not None:
        value, grads = jax.lax.pmean((value, grads), axis_name)
    updates, opt_state = optax.adam(learning_rate).update(grads, state.opt_state)
    return State(optax.apply_updates(state.params, updates), batch_stats, opt_state, key), value


@functools.partial(jax.jit, static_argnames="network")
def predict(state: State, images: jax.Array, *, network: Network) -> jax.Array:
    """Logits, with the running statistics: an image's do not depend on the others in its batch."""
    views = jnp.repeat(augmentation.upright(images, network.size), network.channels, axis=-1)
    return network.apply(state.params, state.batch_stats, views, False)[0]
