"""Batch norm without a framework: two kinds of running average, and batch norm as a regularizer.

    python examples/functional_mlp.py

Dense 128 - ReLU - batch norm - dropout - Dense 10 in jax alone, trained by optax's Adam, with and
without each of batch norm, dropout and an L2 penalty on the kernels. The exponential running average
(momentum 0.99) and the cumulative one (momentum None) see the same training, for neither has a part in
it, and only the evaluations differ.

Prints a table, mean and standard deviation over the seeds after the last epoch, and draws it.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from tqdm import tqdm

import data
import functional_training as training
import jbn
import report
import trials

HIDDEN, CLASSES = 128, 10
# The momentum, where there is batch norm.
NORMS: dict[str, dict[str, float | None]] = {
    "no batch norm": {},
    "batch norm, momentum 0.99": {"momentum": 0.99},
    "batch norm, cumulative": {"momentum": None},
}
# The factor of the sum of squares, and the share of the activations that is dropped.
PENALTIES = {"": (0.0, 0.0), "L2": (1e-3, 0.0), "dropout": (0.0, 0.5), "L2 and dropout": (1e-3, 0.5)}
Result = tuple[Any, Any, Any]  # training loss, test loss and test accuracy, (epochs, seeds)


def create_state(seed: Any, inputs: int, norm: Mapping[str, Any]) -> training.State:
    """The state before the first step, for images of `inputs` pixels."""
    hidden, output, key = jax.random.split(jax.random.key(seed), 3)
    layers = {
        "hidden": training.dense(hidden, inputs, HIDDEN),
        "output": training.dense(output, HIDDEN, CLASSES),
    }
    if not norm:
        return training.create_state(layers, {}, key)
    params, batch_stats = jbn.init(HIDDEN, **norm)
    return training.create_state({**layers, "norm": params}, batch_stats, key)


def mlp(
    params: Any, batch_stats: Any, images: Any, dropout: Any = 0.0, key: Any = None, **norm: Any
) -> tuple[jax.Array, Any]:
    """Images (N, H, W, 1) to logits (N, 10) and the new running statistics.

    `norm` is for `jbn.batch_norm`; there is dropout where there is a `key`.
    """
    x = jax.nn.relu(training.apply_dense(params["hidden"], images.reshape(len(images), -1)))
    if "norm" in params:
        x, batch_stats = jbn.batch_norm(x, params["norm"], batch_stats, **norm)
    if key is not None:
        x = jnp.where(jax.random.bernoulli(key, 1 - dropout, x.shape), x / (1 - dropout), 0)
    return training.apply_dense(params["output"], x), batch_stats


def train_step(
    state: training.State, minibatch: Any, l2: Any, dropout: Any, *, learning_rate: float, **norm: Any
) -> training.State:
    """One step of Adam on images and labels."""
    images, labels = minibatch
    key, dropout_key = jax.random.split(state.key)

    def loss(params):
        stats = state.batch_stats
        logits, stats = mlp(params, stats, images, dropout, dropout_key, train=True, **norm)
        squares = sum(jnp.sum(params[layer]["kernel"] ** 2) for layer in ("hidden", "output"))
        return training.loss_and_accuracy(logits, labels)[0] + l2 * squares, stats

    grads, batch_stats = jax.grad(loss, has_aux=True)(state.params)
    return training.adam_step(state._replace(key=key), grads, batch_stats, learning_rate)


@jax.jit
def evaluate(states: training.State, digits: data.Digits) -> Result:
    """With the running statistics: an image's logits do not depend on the others in its batch."""

    def measure(state, images, labels):
        logits, _ = mlp(state.params, state.batch_stats, images, train=False)
        return training.loss_and_accuracy(logits, labels)

    each_seed = jax.vmap(measure, (0, None, None))
    train_loss, _ = each_seed(states, digits.train_images, digits.train_labels)
    return train_loss, *each_seed(states, digits.test_images, digits.test_labels)


def draw(results: Mapping[tuple[str, str], Result]) -> Figure:
    """The accuracy by epoch without a penalty, and with each of them in the end."""
    figure = Figure(figsize=(11, 4.4), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 3))
    for shift, colour, norm in zip((-0.25, 0, 0.25), ("gray", "C0", "C1"), NORMS, strict=True):
        accuracy = results[norm, ""][2]
        epochs = np.arange(1, 1 + len(accuracy))
        left.plot(epochs, accuracy.mean(1), "o-", color=colour, markersize=4, label=norm)
        left.fill_between(epochs, accuracy.min(1), accuracy.max(1), color=colour, alpha=0.2)
        last = np.array([results[norm, penalty][2][-1] for penalty in PENALTIES])
        places = shift + np.arange(len(last))
        right.plot(places, last, "o", color=colour, alpha=0.4)
        right.plot(places, last.mean(1), "_", color=colour, markersize=24, markeredgewidth=2)
    left.set(xlabel="epoch", ylabel="test accuracy, mean and range of the seeds")
    right.set(xlabel="penalty", ylabel="test accuracy, each seed and the mean")
    right.set_xticks(range(len(PENALTIES)), [penalty or "none" for penalty in PENALTIES])
    for axes in (left, right):
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def main(argv: Sequence[str] | None = None) -> dict[tuple[str, str], Result]:
    """Trains with every norm and penalty; returns the results by norm and penalty."""
    parser = report.flags("An MLP with and without batch norm and dropout.", of_rate="Adam's", seeds=5)
    args, digits = report.parse(parser, argv)
    order = training.orders(len(digits.train_images), args)
    inputs = digits.train_images[0].size
    test = {"evaluate": functools.partial(evaluate, digits=digits)}
    results, rows = {}, {}
    with tqdm(total=len(NORMS) * len(PENALTIES) * args.epochs, unit="epoch") as bar:
        for norm, options in NORMS.items():
            create = functools.partial(create_state, inputs=inputs, norm=options)
            step = functools.partial(train_step, learning_rate=args.learning_rate, **options)
            for penalty, values in PENALTIES.items():
                bar.set_description(name := ", ".join(filter(None, (norm, penalty))))
                states = training.create_states(create, args)
                _, result = training.train(step, states, order, digits[:2], *values, **test, bar=bar)
                results[norm, penalty] = result
                *losses, accuracy = (values[-1] for values in result)
                rows[name] = [*map(trials.spread_of_losses, losses), trials.spread(accuracy)]
    print(trials.table("", ("training loss", "test loss", "test accuracy"), rows))
    trials.save(draw(results), args.out / "functional_mlp.png")
    return results


if __name__ == "__main__":
    main()
