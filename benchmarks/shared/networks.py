"""Networks with a norm chosen by name, one step of training, and the refusal of what is not Flax's.

"No norm" is the identity: neither statistics nor scale and bias.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

import jbn
from examples.models.resnet import resnet18 as resnet18
from examples.models.resnet import resnet50 as resnet50

MOMENTUM = 0.9
VALUE_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-2
OPTIMIZER = optax.sgd(1e-3, momentum=0.9)


class Identity(nn.Module):
    """No norm: what all norms are compared with."""

    use_running_average: bool | None = None
    scale_init: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns x."""
        return x


NORMS: dict[str, Callable[..., nn.Module]] = {
    "no norm": Identity,
    "flax": functools.partial(nn.BatchNorm, momentum=MOMENTUM),
    "jbn": functools.partial(jbn.linen.BatchNorm, momentum=MOMENTUM),
}


class Stack(nn.Module):
    """3x3 convolution, norm, activation, and again; the mean over the positions, and logits.

    Attributes:
        norm: factory of a norm.
        activation: after it.
        features: of each convolution.
    """

    norm: Callable[..., nn.Module]
    activation: Callable[[jax.Array], jax.Array] = nn.relu
    features: tuple[int, ...] = (32, 64)

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """(N, H, W, C) to logits (N, 10)."""
        for features in self.features:
            x = nn.Conv(features, (3, 3), use_bias=False)(x)
            x = self.norm(use_running_average=not train)(x)
            x = self.activation(x)
        return nn.Dense(10)(jnp.mean(x, (1, 2)))


class State(NamedTuple):
    """What a step of training carries on."""

    params: Any
    batch_stats: Any
    opt_state: Any


def data(shape: tuple[int, ...], seed: int) -> tuple[jax.Array, jax.Array]:
    """Images from N(0, 1) and labels from 0 to 9."""
    rng = np.random.default_rng(seed)
    images = rng.standard_normal(shape, np.float32)
    return jnp.asarray(images), jnp.asarray(rng.integers(0, 10, shape[0]), jnp.int32)


def create_state(model: nn.Module, image: Any, seed: int) -> State:
    """Initial parameters, the same for all norms, with scales from [0.5, 1.5].

    Scales that are zero at first, as the last ones of residual blocks, would make the gradients of all
    that is before them zero, and right whatever the norm does.
    """
    key = jax.random.key(seed)
    variables = model.init(key, image, train=False)

    def drawn(path, value):
        if path[-1].key != "scale":
            return value
        return jax.random.uniform(key, value.shape, value.dtype, 0.5, 1.5)

    params = jax.tree_util.tree_map_with_path(drawn, variables["params"])
    return State(params, variables.get("batch_stats", {}), OPTIMIZER.init(params))


def abstract(model: nn.Module, shape: tuple[int, ...]) -> tuple[State, Any, Any]:
    """Shapes and dtypes of state, images and labels: to compile with, nothing is computed."""
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    state = jax.eval_shape(lambda x: create_state(model, x, 0), images)
    return state, images, jax.ShapeDtypeStruct(shape[:1], jnp.int32)


def loss_of(model: nn.Module) -> Callable[..., tuple[jax.Array, Any]]:
    """(params, batch_stats, images, labels) -> (loss, new batch_stats), in training."""

    def loss(params, batch_stats, images, labels):
        variables = {"params": params, "batch_stats": batch_stats}
        logits, updated = model.apply(variables, images, train=True, mutable=["batch_stats"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.mean(losses), updated.get("batch_stats", {})

    return loss


def step_of(model: nn.Module) -> Callable[[State, Any, Any], tuple[State, jax.Array]]:
    """(state, images, labels) -> (new state, loss): one step of SGD with momentum."""
    gradient = jax.value_and_grad(loss_of(model), has_aux=True)

    def step(state, images, labels):
        (loss, batch_stats), grads = gradient(state.params, state.batch_stats, images, labels)
        updates, opt_state = OPTIMIZER.update(grads, state.opt_state)
        return State(optax.apply_updates(state.params, updates), batch_stats, opt_state), loss

    return step


def difference(actual: Any, wanted: Any, order: float = np.inf) -> float:
    """The norm of the difference by that of what is wanted, of the worst array; NaN if any is."""

    def relative(a, w):
        a, w = np.asarray(a, np.float64).ravel(), np.asarray(w, np.float64).ravel()
        return np.linalg.norm(a - w, order) / max(np.linalg.norm(w, order), 1e-6)

    return float(np.max(jax.tree.leaves(jax.tree.map(relative, actual, wanted))))


def require_equal(name: str, actual: Any, wanted: Any) -> None:
    """Refuses what is not Flax's, for what is wrong is not worth measuring.

    Args:
        name: of what is compared.
        actual, wanted: ((loss, batch_stats), gradients). A rounding error moves some activations over
            the zero of their ReLU, in Flax's network as in any other, and with each some elements of
            the gradients: these are compared in the mean square, of each array.

    Raises:
        RuntimeError: they differ.
    """
    found = difference(actual[0], wanted[0]), difference(actual[1], wanted[1], 2)
    if not (found[0] <= VALUE_TOLERANCE and found[1] <= GRADIENT_TOLERANCE):
        errors = "loss and statistics by {:.1e}, gradients by {:.1e}".format(*found)
        raise RuntimeError(f"{name} differs from flax, {errors}: nothing to measure")
