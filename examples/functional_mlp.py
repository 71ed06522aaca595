"""Batch norm without a framework: pure functions, plain dicts, and two kinds of running average.

    python examples/functional_mlp.py

Dense 128 - batch norm - ReLU - Dense 10 in jax alone, trained by optax's Adam. The exponential running
average (momentum 0.99) and the cumulative one (momentum None) see the same training, for neither has a
part in it: their losses coincide, and only the evaluations differ.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

import jbn
import report

HIDDEN = 128
CLASSES = 10


class State(NamedTuple):
    """What a step of training carries on."""

    params: Any
    batch_stats: dict[str, jax.Array]
    opt_state: optax.OptState


def create_state(inputs: int, momentum: float | None, seed: int) -> State:
    """Initial parameters, running statistics and optimizer state for images of `inputs` pixels."""
    hidden_key, output_key = jax.random.split(jax.random.key(seed))
    kernel = jax.nn.initializers.he_normal()
    norm, batch_stats = jbn.init(HIDDEN, momentum=momentum)
    params = {
        # No bias: batch norm would subtract it with the mean.
        "hidden": {"kernel": kernel(hidden_key, (inputs, HIDDEN))},
        "norm": norm,
        "output": {"kernel": kernel(output_key, (HIDDEN, CLASSES)), "bias": jnp.zeros((1, CLASSES))},
    }
    # Adam's state does not depend on the learning rate.
    return State(params, batch_stats, optax.adam(0.0).init(params))


def mlp(
    params: Any,
    batch_stats: dict[str, jax.Array],
    images: jax.Array,
    *,
    train: bool,
    momentum: float | None = 0.99,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Images (N, H, W, 1) to logits (N, 10) and the new running statistics."""
    x = images.reshape(len(images), -1) @ params["hidden"]["kernel"]
    x, batch_stats = jbn.batch_norm(x, params["norm"], batch_stats, train=train, momentum=momentum)
    x = jax.nn.relu(x)
    return x @ params["output"]["kernel"] + params["output"]["bias"], batch_stats


@functools.partial(jax.jit, static_argnames="momentum")
def train_step(
    state: State,
    images: jax.Array,
    labels: jax.Array,
    *,
    learning_rate: float,
    momentum: float | None,
) -> tuple[State, jax.Array]:
    """One step of Adam on a minibatch: the new state, and the loss before it."""

    def loss(params):
        logits, batch_stats = mlp(params, state.batch_stats, images, train=True, momentum=momentum)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.mean(losses), batch_stats

    (value, batch_stats), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
    updates, opt_state = optax.adam(learning_rate).update(grads, state.opt_state)
    return State(optax.apply_updates(state.params, updates), batch_stats, opt_state), value


@jax.jit
def predict(state: State, images: jax.Array) -> jax.Array:
    """Logits, with the running statistics: an image's do not depend on the others in its batch."""
    logits, _ = mlp(state.params, state.batch_stats, images, train=False)
    return logits


def main(argv: Sequence[str] | None = None) -> list[report.Run]:
    """Trains with both averages at both rates; returns the runs in the order of the table."""
    args, digits = report.setup(
        argv, "An MLP with two kinds of running average, at two learning rates."
    )
    inputs = int(np.prod(digits.train_images.shape[1:]))
    rates = (args.learning_rate, 10 * args.learning_rate)
    settings = list(itertools.product(rates, (0.99, None)))
    runs = []
    with tqdm(total=len(settings) * args.epochs, unit="epoch") as bar:
        for rate, momentum in settings:
            name = "cumulative" if momentum is None else f"momentum {momentum}"
            state = create_state(inputs, momentum, args.seed)
            step = functools.partial(train_step, learning_rate=rate, momentum=momentum)
            _, run = report.record(name, rate, state, step, predict, digits, args, bar)
            runs.append(run)
    report.finish(runs, args.out / "functional_mlp.png")
    return runs


if __name__ == "__main__":
    main()
