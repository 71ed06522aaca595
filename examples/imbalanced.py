"""Classes of unequal frequency: the statistics of the majority, or of all classes alike.

    python examples/imbalanced.py

Dense 128 - ReLU - batch norm - Dense 10, trained on digits of which 0 is the most frequent and 9 fifty
times rarer, and tested on equally many of each. Weights of inverse class frequency as the `mask` make
the classes count alike in the statistics of a batch; they also make these noisy, for the few rare
images of a batch, or none, weigh as much as all the others. What is trained with plain or with weighted
statistics is evaluated with three kinds:

    running     the averages over the batches of its training
    plain       those of all its training images
    weighted    those of all its training images, weighted

and each with the plain cross entropy as the loss and with one weighted in the same way. Prints the mean
accuracy of the ten classes and of the rarest three, with the standard deviation over the seeds, each of
which draws training images of its own. Draws the accuracy of each class, evaluated with the averages.
"""

import functools
import itertools
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
import report
import trials
from functional_mlp import CLASSES, create_state, mlp

RATIO = 50
RAREST = 3
MOMENTUM = 0.9
LOSSES = ("plain loss", "weighted loss")
NORMS = ("no batch norm", "plain", "weighted")
EVALUATIONS = ("running", "plain", "weighted")


def train_step(
    state: training.State, minibatch: Any, *, norm: str, loss: str, learning_rate: float
) -> training.State:
    """One step of Adam on images, labels and their weights (N,)."""
    images, labels, weights = minibatch
    mask = weights[:, None] if norm == "weighted" else None
    of_loss = weights if loss == "weighted loss" else None

    def mean_loss(params):
        batch_norm = {"train": True, "momentum": MOMENTUM, "mask": mask}
        logits, batch_stats = mlp(params, state.batch_stats, images, **batch_norm)
        return training.loss_and_accuracy(logits, labels, of_loss)[0], batch_stats

    grads, batch_stats = jax.grad(mean_loss, has_aux=True)(state.params)
    return training.adam_step(state, grads, batch_stats, learning_rate)


@jax.jit
def evaluate(states: training.State, chosen: Any, arrays: Any, digits: data.Digits) -> Any:
    """The accuracy of each class for each seed, (seeds, 10), with each kind of statistics."""

    def one_seed(state, chosen):
        images, _, weights = (v[chosen] for v in arrays)
        anew = functools.partial(mlp, state.params, state.batch_stats, images, train=True, momentum=0.0)
        kinds = state.batch_stats, anew()[1], anew(mask=weights[:, None])[1]
        return {
            name: of_classes(mlp(state.params, stats, digits.test_images, train=False)[0])
            for name, stats in zip(EVALUATIONS, kinds, strict=True)
        }

    def of_classes(logits):
        correct = jnp.argmax(logits, axis=-1) == digits.test_labels
        members = jnp.arange(CLASSES)[:, None] == digits.test_labels
        return jnp.sum(members & correct, axis=1) / jnp.sum(members, axis=1)

    return jax.vmap(one_seed)(states, chosen)


def draw(results: Mapping[tuple[str, str, str], np.ndarray], sizes: np.ndarray) -> Figure:
    """The accuracy of each class, mean and deviation, one side for each loss."""
    figure = Figure(figsize=(11, 4.8), dpi=100, layout="constrained")
    sides = dict(zip(LOSSES, figure.subplots(1, 2, sharey=True), strict=True))
    for shift, norm in zip((-0.15, 0, 0.15), NORMS, strict=True):
        for loss, axes in sides.items():
            values = results[loss, norm, "running"]
            deviation = values.std(0, ddof=1) if len(values) > 1 else None
            places = shift + np.arange(CLASSES)
            axes.errorbar(places, values.mean(0), deviation, fmt="o-", capsize=3, label=norm)
    for loss, axes in sides.items():
        axes.set_title(loss)
        axes.set_xticks(range(CLASSES), [f"{c}\n{n}" for c, n in enumerate(sizes)])
        axes.set_xlabel("digit, and its number of training images")
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.grid(alpha=0.3)
    sides[LOSSES[0]].set_ylabel("test accuracy of the digit")
    labels = sides[LOSSES[0]].get_legend_handles_labels()
    figure.legend(*labels, title="statistics of a batch", loc="outside lower center", ncols=3)
    return figure


def main(argv: Sequence[str] | None = None) -> dict[tuple[str, str, str], np.ndarray]:
    """Trains each norm with each loss; returns the accuracies (seeds, 10), by evaluation too."""
    parser = report.flags(
        "Batch norm on classes of 1 to 50 in frequency.", of_rate="Adam's", epochs=30, seeds=10
    )
    args, digits = report.parse(parser, argv)
    labels = digits.train_labels
    chosen = np.stack([data.long_tail(labels, RATIO, seed) for seed in trials.seeds(args)])
    sizes = np.bincount(labels[chosen[0]], minlength=CLASSES)
    if args.batch_size > sizes.sum():
        limit = f"must be at most {sizes.sum()}, the number of images here, got {args.batch_size}"
        parser.error(f"argument --batch-size: {limit}")
    order = training.orders(len(chosen[0]), args)
    order = np.stack([images[order[:, seed]] for seed, images in enumerate(chosen)], axis=1)
    arrays = (digits.train_images, labels, (1 / sizes).astype(np.float32)[labels])
    test = functools.partial(evaluate, chosen=chosen, arrays=arrays, digits=digits)
    results = {}
    with tqdm(total=len(LOSSES) * len(NORMS) * args.epochs, unit="epoch") as bar:
        for loss, norm in itertools.product(LOSSES, NORMS):
            bar.set_description(f"{norm}, {loss}")
            options = {} if norm == "no batch norm" else {"momentum": MOMENTUM}
            create = functools.partial(create_state, inputs=digits.train_images[0].size, norm=options)
            step = functools.partial(train_step, norm=norm, loss=loss, learning_rate=args.learning_rate)
            states = training.create_states(create, args)
            _, kinds = training.train(step, states, order, arrays, evaluate=test, bar=bar)
            for evaluation in EVALUATIONS if options else EVALUATIONS[:1]:
                results[loss, norm, evaluation] = kinds[evaluation][-1]
    rows = {}
    for norm, evaluation in dict.fromkeys(key[1:] for key in results):
        each = [results[loss, norm, evaluation] for loss in LOSSES]
        rows[f"{norm}, evaluated {evaluation}"] = [
            trials.spread(part.mean(1)) for values in each for part in (values, values[:, -RAREST:])
        ]
    columns = [f"{loss}: {part}" for loss in LOSSES for part in ("all", f"rarest {RAREST}")]
    print(trials.table("", columns, rows))
    trials.save(draw(results, sizes), args.out / "imbalanced.png")
    return results


if __name__ == "__main__":
    main()
