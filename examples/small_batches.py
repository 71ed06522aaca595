"""How small a batch may be, with batch norm and with the norms that do not look at the batch.

    python examples/small_batches.py

Conv 16 - norm - ReLU - Conv 32 - norm - ReLU - Dense 10 (flax.linen, SGD with momentum), with jbn's
batch norm, Flax's group, layer and instance norm, and no norm. Every training sees the same images as
often. As in Wu and He (2018), who asked the same of ImageNet, the learning rate is in proportion to the
batch size, and batch norm's momentum is 0.9 at `--batch-size` and such at the others that the running
statistics average over as many images. The statistics of a channel are also over the positions in an
image: 2 images of 8x8 pixels are 128 values.

Prints the test accuracy for each norm and batch size, with its spread over the seeds, and draws it.
"""

import argparse
import functools
import itertools
from collections.abc import Callable, Sequence

import jax
import numpy as np
import optax
from flax import linen as nn
from matplotlib.figure import Figure
from tqdm import tqdm

import data
import jbn
import report
import trials
from linen_training import create_state, predict, train_step

BATCH_SIZES = (2, 4, 8, 32, 128)
EPSILON = 1e-5
NORMS: dict[str, Callable[..., nn.Module] | None] = {
    "batch norm": functools.partial(jbn.linen.BatchNorm, epsilon=EPSILON),
    # Groups of 4 channels.
    "group norm": functools.partial(nn.GroupNorm, num_groups=None, group_size=4, epsilon=EPSILON),
    # Over positions and channels, as in Wu and He; Flax's default is each position for itself.
    "layer norm": functools.partial(nn.LayerNorm, reduction_axes=(-3, -2, -1), epsilon=EPSILON),
    "instance norm": functools.partial(nn.InstanceNorm, epsilon=EPSILON),
    "no norm": None,
}
sgd = functools.partial(optax.sgd, momentum=0.9)


class CNN(nn.Module):
    """The network; the same initial kernels with every norm."""

    norm: str
    momentum: float = 0.9

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Images (N, H, W, 1) to logits (N, 10); `train` matters to batch norm alone."""
        norm = NORMS[self.norm]
        running = {"use_running_average": not train, "momentum": self.momentum}
        for features, stride in ((16, 1), (32, 2)):
            x = nn.Conv(features, (3, 3), strides=stride, use_bias=norm is None)(x)
            if norm is not None:
                x = norm(**running if self.norm == "batch norm" else {})(x)
            x = nn.relu(x)
        return nn.Dense(10)(x.reshape(len(x), -1))


def train(
    norm: str, batch_size: int, seed: int, digits: data.Digits, args: argparse.Namespace, bar: tqdm
) -> report.Run:
    """One training; the learning rate, and batch norm's momentum, depend on the batch size."""
    scale = batch_size / args.batch_size
    model, rate = CNN(norm, momentum=0.9**scale), scale * args.learning_rate
    state = create_state(model, digits.train_images, seed, sgd)
    step = functools.partial(train_step, model=model, learning_rate=rate, optimizer=sgd)
    # The momentum has no part in it: one compiled function for all batch sizes.
    logits = functools.partial(predict, model=CNN(norm))
    name, own = f"{norm}, batches of {batch_size}", {"batch_size": batch_size, "seed": seed}
    return report.record(name, rate, state, step, logits, digits, args, bar, **own)[1]


def main(argv: Sequence[str] | None = None) -> dict[str, dict[int, list[float]]]:
    """Trains with each norm and batch size; returns the accuracy of each seed, by norm and size."""
    parser = report.flags(
        "Test accuracy against batch size, with batch norm, other norms and none.",
        of_batch="the batch size that --learning-rate is for",
        learning_rate=0.05,
        of_rate="SGD's at --batch-size; at the others in proportion",
        epochs=5,
        seeds=3,
    )
    args, digits = report.parse(parser, argv)
    # All sizes see the same number of images: no remainder is dropped.
    images = len(digits.train_images) // max(BATCH_SIZES) * max(BATCH_SIZES)
    digits = digits._replace(
        train_images=digits.train_images[:images], train_labels=digits.train_labels[:images]
    )
    accuracies = {norm: {size: [] for size in BATCH_SIZES} for norm in NORMS}
    with tqdm(total=len(NORMS) * len(BATCH_SIZES) * args.seeds * args.epochs, unit="epoch") as bar:
        for norm, size, seed in itertools.product(NORMS, BATCH_SIZES, trials.seeds(args)):
            run = train(norm, size, seed, digits, args, bar)
            accuracies[norm][size].append(run.test_accuracy[-1])
    rows = {norm: [trials.spread(v) for v in of.values()] for norm, of in accuracies.items()}
    print(trials.table("", [f"batches of {size}" for size in BATCH_SIZES], rows))
    figure = Figure(figsize=(8, 4.8), dpi=110, layout="constrained")
    axes = figure.subplots()
    for index, (norm, of_size) in enumerate(accuracies.items()):
        # Side by side, so that the bars do not cover one another.
        sizes = np.array(BATCH_SIZES) * 1.04 ** (index - 2)
        trials.points(axes, sizes, np.transpose(list(of_size.values())), norm)
    axes.set_xscale("log", base=2)
    axes.set_xticks(BATCH_SIZES, map(str, BATCH_SIZES))
    axes.set_xlabel("batch size (images)")
    trials.accuracy_axis(axes)
    trials.save(figure, args.out / "small_batches.png")
    return accuracies


if __name__ == "__main__":
    main()
