"""Figure 1 of Ioffe and Szegedy (2015) on these digits, and their claim about learning rates.

    python examples/covariate_shift.py

Their network, from sigmoid_model.py, without batch norm and with it before each sigmoid, trained by SGD
on batches of 60. Prints the test accuracy after training for each learning rate, and draws

    (a)       the test accuracy while training, at `--learning-rate`
    (b), (c)  the 15th, 50th and 85th percentile, over the test images, of the input to one sigmoid of
              the last hidden layer, without and with batch norm: to the first of the hundred, of the
              first seed
    (d)       the accuracy after training against the learning rate: section 4 of the paper says that
              batch norm allows higher ones

The paper trains on MNIST for 50,000 steps and does not name the learning rate. Here the networks of all
rates and seeds are trained at once, by `jax.vmap`; they are dense, so that the loop over the steps can
be a `lax.scan`.
"""

import argparse
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from tqdm import tqdm

import data
import report
import trials
from sigmoid_model import State, create_state, mlp

RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
PERCENTILES = (15, 50, 85)
NAMES = {False: "no batch norm", True: "batch norm"}


def epoch(
    state: State, rate: jax.Array, batches: jax.Array, images: jax.Array, labels: jax.Array
) -> State:
    """A pass of SGD over `batches`, indices (steps, batch size) of `images` and `labels`."""

    def step(state, batch):
        def loss(params):
            logits, _, batch_stats = mlp(state._replace(params=params), images[batch], train=True)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels[batch])
            return jnp.mean(losses), batch_stats

        grads, batch_stats = jax.grad(loss, has_aux=True)(state.params)
        return State(jax.tree.map(lambda p, g: p - rate * g, state.params, grads), batch_stats), None

    return jax.lax.scan(step, state, batches)[0]


def evaluate(state: State, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The accuracy, and the percentiles of the input to the first of the last sigmoids."""
    logits, before, _ = mlp(state, images, train=False)
    accuracy = jnp.mean((jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32))
    return accuracy, jnp.percentile(before[:, 0], jnp.array(PERCENTILES, jnp.float32))


# Of arrays with axes (rates, seeds); the order of the images is each seed's own.
epoch_of_all = jax.jit(jax.vmap(jax.vmap(epoch, (0, None, 0, None, None)), (0, 0, None, None, None)))
evaluate_all = jax.jit(jax.vmap(jax.vmap(evaluate, (0, None, None)), (0, None, None)))


def train(
    batch_norm: bool, rates: Sequence[float], digits: data.Digits, args: argparse.Namespace, bar: tqdm
) -> tuple[np.ndarray, np.ndarray]:
    """Accuracies (rates, seeds, epochs + 1) and percentiles (rates, seeds, epochs + 1, 3)."""
    bar.set_description(NAMES[batch_norm])
    images, labels, *test = map(jnp.asarray, digits)
    inputs, seeds = int(np.prod(images.shape[1:])), trials.seeds(args)
    starts = [create_state(jax.random.key(seed), inputs, batch_norm) for seed in seeds]
    states = jax.tree.map(lambda *v: jnp.stack([jnp.stack(v)] * len(rates)), *starts)
    records = [jax.device_get(evaluate_all(states, *test))]
    orders = [data.shuffled_epochs(len(images), args.minibatch, args.epochs, seed) for seed in seeds]
    for batches in zip(*orders, strict=True):
        states = epoch_of_all(states, jnp.array(rates), np.stack(batches), images, labels)
        records.append(jax.device_get(evaluate_all(states, *test)))
        bar.update()
    accuracies, percentiles = (np.stack(part, axis=2) for part in zip(*records, strict=True))
    return accuracies, percentiles


def draw(
    records: Mapping[str, tuple[np.ndarray, np.ndarray]],
    rates: Sequence[float],
    chosen: int,
    steps: int,
) -> Figure:
    """The four panels; (a) to (c) at the rate of index `chosen`, with `steps` in an epoch."""
    figure = Figure(figsize=(10, 7.4), dpi=110, layout="constrained")
    (a, d), below = figure.subplots(2, 2)
    for (name, (accuracies, percentiles)), letter, axes in zip(
        records.items(), "bc", below, strict=True
    ):
        at = steps * np.arange(accuracies.shape[2])
        trials.curve(a, at, accuracies[chosen], name)
        trials.points(d, rates, accuracies[:, :, -1].T, name)
        for percent, line in zip(PERCENTILES, percentiles[chosen, 0].T, strict=True):
            axes.plot(at, line, label=f"{percent}th percentile")
        axes.set(title=f"({letter}) {name}", xlabel="step", ylabel="input to one sigmoid")
        axes.grid(alpha=0.3)
    # The colours of both; in the other panel it would cover a line.
    below[1].legend(reverse=True)
    a.set(title=f"(a) learning rate {rates[chosen]:g}", xlabel="step")
    d.set(title="(d) after the last step", xlabel="learning rate (SGD)", xscale="log")
    below[0].sharey(below[1])
    trials.accuracy_axis(a)
    trials.accuracy_axis(d)
    return figure


def main(argv: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """Trains all networks; returns the accuracies (rates, seeds, epochs + 1) without and with."""
    parser = report.flags(
        "Sigmoid networks with and without batch norm, at learning rates from 0.001 to 30.",
        batch_size=60,
        learning_rate=1.0,
        of_rate="SGD's in the panels over the steps; it joins those of the last panel",
        epochs=300,
        seeds=5,
    )
    args, digits = report.parse(parser, argv)
    rates = sorted({*RATES, args.learning_rate})
    with tqdm(total=2 * args.epochs, unit="epoch") as bar:
        records = {name: train(key, rates, digits, args, bar) for key, name in NAMES.items()}
    rows = {
        f"{rate:g}": [trials.spread(accuracies[index, :, -1]) for accuracies, _ in records.values()]
        for index, rate in enumerate(rates)
    }
    print(trials.table("learning rate", list(records), rows))
    steps = len(digits.train_images) // args.minibatch
    figure = draw(records, rates, rates.index(args.learning_rate), steps)
    trials.save(figure, args.out / "covariate_shift.png")
    return {name: accuracies for name, (accuracies, _) in records.items()}


if __name__ == "__main__":
    main()
