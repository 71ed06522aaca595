"""A small convolutional network with and without batch norm, at a learning rate and at ten times it.

    python examples/digits_cnn.py

Conv 32 - BatchNorm - ReLU - Conv 64 - BatchNorm - ReLU - Dense 10 in flax.linen, trained by Adam.
Prints a table of the runs, draws their learning curves, and saves and reloads a checkpoint.
"""

import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import serialization
from tqdm import tqdm

import jbn
import report


class CNN(nn.Module):
    """The network; the same initial kernels with and without batch norm."""

    batch_norm: bool

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Images (N, H, W, 1) to logits (N, 10); `train` normalizes with the batch's statistics."""
        for features in (32, 64):
            # Batch norm subtracts the mean, and a bias before it with it.
            x = nn.Conv(features, (3, 3), use_bias=not self.batch_norm)(x)
            if self.batch_norm:
                # An epoch of the small digits is 44 steps: 0.99, the default, would average over more
                # than two epochs, and early evaluations would use the statistics of stale weights.
                x = jbn.linen.BatchNorm(use_running_average=not train, momentum=0.9)(x)
            x = nn.relu(x)
        return nn.Dense(10)(x.reshape(len(x), -1))


class State(NamedTuple):
    """What a step of training carries on."""

    params: Any
    batch_stats: Any
    opt_state: optax.OptState


def create_state(model: CNN, images: np.ndarray, seed: int) -> State:
    """Initial parameters, running statistics and optimizer state."""
    variables = model.init(jax.random.key(seed), images[:1], train=False)
    params = variables["params"]
    # Adam's state does not depend on the learning rate.
    return State(params, variables.get("batch_stats", {}), optax.adam(0.0).init(params))


@functools.partial(jax.jit, static_argnames="model")
def train_step(
    state: State, images: jax.Array, labels: jax.Array, *, model: CNN, learning_rate: float
) -> tuple[State, jax.Array]:
    """One step of Adam on a minibatch: the new state, and the loss before it."""

    def loss(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, updated = model.apply(variables, images, train=True, mutable=["batch_stats"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.mean(losses), updated.get("batch_stats", {})

    (value, batch_stats), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
    updates, opt_state = optax.adam(learning_rate).update(grads, state.opt_state)
    return State(optax.apply_updates(state.params, updates), batch_stats, opt_state), value


@functools.partial(jax.jit, static_argnames="model")
def predict(state: State, images: jax.Array, *, model: CNN) -> Any:
    """Logits, with the running statistics: an image's do not depend on the others in its batch."""
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    return model.apply(variables, images, train=False)


def save(state: State, path: Path) -> None:
    """Writes parameters, running statistics and optimizer state, so that training could go on."""
    path.write_bytes(serialization.to_bytes(state))


def restore(fresh: State, path: Path) -> State:
    """Reads what `save` wrote; `fresh` is a state of the same form, whose values are replaced."""
    restored: Any = serialization.from_bytes(fresh, path.read_bytes())
    return restored


def main(argv: Sequence[str] | None = None) -> list[report.Run]:
    """Trains the four networks; returns the runs in the order of the table."""
    args, digits = report.setup(argv, "A small CNN with and without batch norm, at two learning rates.")
    rates = (args.learning_rate, 10 * args.learning_rate)
    settings = list(itertools.product(rates, (True, False)))
    runs, states = [], []
    with tqdm(total=len(settings) * args.epochs, unit="epoch") as bar:
        for rate, batch_norm in settings:
            model = CNN(batch_norm)
            name = "batch norm" if batch_norm else "no batch norm"
            state = create_state(model, digits.train_images, args.seed)
            step = functools.partial(train_step, model=model, learning_rate=rate)
            logits = functools.partial(predict, model=model)
            state, run = report.record(name, rate, state, step, logits, digits, args, bar)
            runs.append(run)
            states.append(state)
    report.finish(runs, args.out / "digits_cnn.png")

    checkpoint = args.out / "digits_cnn.msgpack"
    save(states[0], checkpoint)
    fresh = create_state(CNN(True), digits.train_images, args.seed + 1)
    saved, reloaded = (
        report.accuracy(functools.partial(predict, model=CNN(True)), state, digits)
        for state in (states[0], restore(fresh, checkpoint))
    )
    print(f"{checkpoint}: test accuracy {saved:.2%} saved, {reloaded:.2%} reloaded")
    return runs


if __name__ == "__main__":
    main()
