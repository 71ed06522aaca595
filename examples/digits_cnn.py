"""Batch norm in flax.linen: a convolutional network with and without it, on handwritten digits.

    python examples/digits_cnn.py

Needs no other file: copy it and go on from there. Prints the test accuracy after each epoch, then saves
and restores a train state, which holds the running statistics as `batch_stats`.
"""

import argparse
from pathlib import Path

parser = argparse.ArgumentParser(description="A CNN with and without batch norm, in flax.linen.")
parser.add_argument("--epochs", type=int, default=10, help="default: %(default)s")
parser.add_argument("--learning-rate", type=float, default=1e-3, help="Adam's; default: %(default)s")
parser.add_argument("--out", type=Path, default="out", help="for the checkpoint; default: %(default)s")
if __name__ == "__main__":
    parser.parse_args()  # before the imports that take seconds, so that --help does not

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import linen as nn
from flax.training import train_state
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import jbn

BATCH_SIZE = 32


class CNN(nn.Module):
    """Two convolutions with batch norm, or without, and a dense layer."""

    batch_norm: bool

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Images (N, 8, 8, 1) to logits (N, 10)."""
        for features in (32, 64):
            # No bias before batch norm, which subtracts it with the mean and has its own.
            x = nn.Conv(features, (3, 3), use_bias=not self.batch_norm)(x)
            if self.batch_norm:
                # The default momentum, 0.99, would average over more than two epochs of 44 steps.
                x = jbn.linen.BatchNorm(use_running_average=not train, momentum=0.9)(x)
            x = nn.relu(x)
        return nn.Dense(10)(x.reshape(len(x), -1))


class TrainState(train_state.TrainState):
    """Flax's, and the running statistics."""

    batch_stats: dict


def create_state(model: CNN, learning_rate: float) -> TrainState:
    """The state before the first step."""
    variables = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), train=False)
    return TrainState.create(
        apply_fn=model.apply,
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        tx=optax.adam(learning_rate),
    )


@jax.jit
def train_step(state: TrainState, images: jax.Array, labels: jax.Array) -> TrainState:
    """The state after a step on a minibatch, which is normalized by its own statistics."""

    def loss_fn(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, updated = state.apply_fn(variables, images, train=True, mutable=["batch_stats"])
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return loss, updated.get("batch_stats", {})

    grads, batch_stats = jax.grad(loss_fn, has_aux=True)(state.params)
    return state.apply_gradients(grads=grads, batch_stats=batch_stats)


@jax.jit
def accuracy(state: TrainState, images: jax.Array, labels: jax.Array) -> jax.Array:
    """By the running statistics, so that the answer for an image does not depend on the others."""
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    return jnp.mean(state.apply_fn(variables, images, train=False).argmax(-1) == labels)


def main(argv: list[str] | None = None) -> None:
    """Trains both networks on the same minibatches, and restores one from a checkpoint."""
    args = parser.parse_args(argv)
    pixels, labels = load_digits(return_X_y=True)
    images = np.float32(pixels).reshape(-1, 8, 8, 1) / 16
    split = train_test_split(images, labels, test_size=0.2, stratify=labels, random_state=1)
    images, test_images, labels, test_labels = map(jnp.asarray, split)
    networks = {"batch norm": CNN(batch_norm=True), "no batch norm": CNN(batch_norm=False)}
    states = {n: create_state(model, args.learning_rate) for n, model in networks.items()}
    rng, steps = np.random.default_rng(0), len(images) // BATCH_SIZE
    print("epoch", *networks, sep="  ")
    for epoch in range(1, args.epochs + 1):
        # Without the remainder: a smaller batch would compile anew and have noisier statistics.
        order = rng.permutation(len(images))[: steps * BATCH_SIZE].reshape(steps, BATCH_SIZE)
        for batch in order:
            states = {n: train_step(s, images[batch], labels[batch]) for n, s in states.items()}
        cells = [f"{accuracy(s, test_images, test_labels):{len(n)}.1%}" for n, s in states.items()]
        print(f"{epoch:5}", *cells, sep="  ")

    path = args.out.resolve() / "digits_cnn"
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, states["batch norm"], force=True)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(path, states["batch norm"])  # a state of the same form
    print(f"{path}: {accuracy(restored, test_images, test_labels):.1%} restored")


if __name__ == "__main__":
    main()
