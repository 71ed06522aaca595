"""Batch norm in flax.nnx: a convolutional network on handwritten digits.

    python examples/digits_nnx.py

Needs no other file: copy it and go on from there. A module of NNX holds its running statistics, as
`nnx.BatchStat`, beside its parameters: training updates them in place, `model.train()` and
`model.eval()` switch between the statistics of the minibatch and the running ones, and the optimizer
sees `nnx.Param` alone. Prints the loss and the test accuracy after each epoch.
"""

import argparse

parser = argparse.ArgumentParser(description="A CNN with batch norm, in flax.nnx.")
parser.add_argument("--epochs", type=int, default=10, help="default: %(default)s")
parser.add_argument("--learning-rate", type=float, default=1e-3, help="Adam's; default: %(default)s")
if __name__ == "__main__":
    parser.parse_args()  # before the imports that take seconds, so that --help does not

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import jbn

BATCH_SIZE = 32


class Block(nnx.Module):
    """A convolution, batch norm and a ReLU."""

    def __init__(self, inputs: int, features: int, *, rngs: nnx.Rngs):
        # No bias before batch norm, which subtracts it with the mean and has its own.
        self.conv = nnx.Conv(inputs, features, (3, 3), use_bias=False, rngs=rngs)
        # The default momentum, 0.99, would average over more than two epochs of 44 steps.
        self.norm = jbn.nnx.BatchNorm(features, momentum=0.9, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(N, H, W, inputs) to (N, H, W, features)."""
        return nnx.relu(self.norm(self.conv(x)))


class CNN(nnx.Module):
    """Two blocks and a linear layer, for images of 8x8 pixels."""

    def __init__(self, rngs: nnx.Rngs):
        self.block1 = Block(1, 32, rngs=rngs)
        self.block2 = Block(32, 64, rngs=rngs)
        self.output = nnx.Linear(8 * 8 * 64, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Images (N, 8, 8, 1) to logits (N, 10)."""
        x = self.block2(self.block1(x))
        return self.output(x.reshape(len(x), -1))


@nnx.jit
def train_step(model: CNN, optimizer: nnx.Optimizer, images: jax.Array, labels: jax.Array) -> jax.Array:
    """A step on a minibatch, which changes the model and the optimizer; returns the loss before it."""

    def loss_fn(model):
        return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()

    loss, grads = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(model, grads)
    return loss


@nnx.jit
def accuracy(model: CNN, images: jax.Array, labels: jax.Array) -> jax.Array:
    """The share of the images that the model recognizes."""
    return jnp.mean(model(images).argmax(-1) == labels)


def main(argv: list[str] | None = None) -> CNN:
    """Trains the network and returns it."""
    args = parser.parse_args(argv)
    pixels, labels = load_digits(return_X_y=True)
    images = np.float32(pixels).reshape(-1, 8, 8, 1) / 16
    split = train_test_split(images, labels, test_size=0.2, stratify=labels, random_state=1)
    images, test_images, labels, test_labels = map(jnp.asarray, split)
    model = CNN(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(args.learning_rate), wrt=nnx.Param)
    rng, steps = np.random.default_rng(0), len(images) // BATCH_SIZE
    print("epoch  training loss  test accuracy")
    for epoch in range(1, args.epochs + 1):
        model.train()  # normalize by the minibatch, and update the running statistics
        # Without the remainder: a smaller batch would compile anew and have noisier statistics.
        order = rng.permutation(len(images))[: steps * BATCH_SIZE].reshape(steps, BATCH_SIZE)
        losses = [train_step(model, optimizer, images[batch], labels[batch]) for batch in order]
        model.eval()  # normalize by the running statistics, and leave them as they are
        recognized = accuracy(model, test_images, test_labels)
        print(f"{epoch:5}  {np.mean(losses):13.4f}  {recognized:13.1%}")
    return model


if __name__ == "__main__":
    main()
