"""A small convolutional network with and without batch norm, at a learning rate and at ten times it.

    python examples/digits_cnn.py

Conv 32 - BatchNorm - ReLU - Conv 64 - BatchNorm - ReLU - Dense 10 in flax.linen, trained by Adam, with
the step in linen_training.py. Prints a table of the runs, draws their learning curves, and saves and
reloads a checkpoint.
"""

import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from flax import linen as nn
from flax import serialization
from tqdm import tqdm

import jbn
import learning_curves
import report
from linen_training import State, create_state, predict, train


class CNN(nn.Module):
    """The network; the same initial kernels with and without batch norm.

    Attributes:
        batch_norm: whether it follows each convolution.
        input_norm: whether the first layer is batch norm, of the pixels.
    """

    batch_norm: bool
    input_norm: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Images (N, H, W, 1) to logits (N, 10); `train` normalizes with the batch's statistics."""
        # An epoch of the small digits is 44 steps: 0.99, the default, would average over more than
        # two epochs, and early evaluations would use the statistics of stale weights.
        norm = functools.partial(jbn.linen.BatchNorm, use_running_average=not train, momentum=0.9)
        if self.input_norm:
            x = norm(name="input_norm")(x)
        for features in (32, 64):
            # Batch norm subtracts the mean, and a bias before it with it.
            x = nn.Conv(features, (3, 3), use_bias=not self.batch_norm)(x)
            if self.batch_norm:
                x = norm()(x)
            x = nn.relu(x)
        return nn.Dense(10)(x.reshape(len(x), -1))


def save(state: State, path: Path) -> None:
    """Writes parameters, running statistics and optimizer state, so that training could go on."""
    path.write_bytes(serialization.to_bytes(state))


def restore(fresh: State, path: Path) -> State:
    """Reads what `save` wrote; `fresh` is a state of the same form, whose values are replaced."""
    restored: Any = serialization.from_bytes(fresh, path.read_bytes())
    return restored


def main(argv: Sequence[str] | None = None) -> list[report.Run]:
    """Trains the four networks; returns the runs in the order of the table."""
    parser = report.flags("A small CNN with and without batch norm, at two learning rates.")
    args, digits = report.parse(parser, argv)
    rates = (args.learning_rate, 10 * args.learning_rate)
    settings = list(itertools.product(rates, (True, False)))
    runs, states = [], []
    with tqdm(total=len(settings) * args.epochs, unit="epoch") as bar:
        for rate, batch_norm in settings:
            name = "batch norm" if batch_norm else "no batch norm"
            state, run = train(CNN(batch_norm), name, rate, args.seed, digits, args, bar)
            runs.append(run)
            states.append(state)
    print(report.table(runs))
    learning_curves.draw(runs, args.out / "digits_cnn.png")

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
