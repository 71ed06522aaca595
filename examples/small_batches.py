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

from shared import flags

parser = flags.parser(
    "Test accuracy against batch size, with batch norm, other norms and none.",
    epochs=5,
    of_batch="the batch size that --learning-rate is for",
    learning_rate=0.05,
    of_rate="SGD's at --batch-size; at the others in proportion",
    seeds=3,
)
if __name__ == "__main__":
    parser.parse_args()  # before the imports that take seconds, so that --help does not

import functools
import itertools
from collections.abc import Callable, Sequence

import numpy as np
import optax
from flax import linen as nn
from matplotlib.figure import Figure
from tqdm import tqdm

import jbn
from models.cnn import CNN
from shared import data, pictures, report, training

BATCH_SIZES = (2, 4, 8, 32, 128)
EPSILON = 1e-5
sgd = functools.partial(optax.sgd, momentum=0.9)


def batch_norm(use_running_average: bool, momentum: float) -> nn.Module:
    """The one that looks at the batch."""
    return jbn.linen.BatchNorm(use_running_average, momentum=momentum, epsilon=EPSILON)


def group_norm(use_running_average: bool, momentum: float) -> nn.Module:
    """Over groups of 4 channels."""
    return nn.GroupNorm(num_groups=None, group_size=4, epsilon=EPSILON)


def layer_norm(use_running_average: bool, momentum: float) -> nn.Module:
    """Over positions and channels, as in Wu and He; Flax's default is each position for itself."""
    return nn.LayerNorm(reduction_axes=(-3, -2, -1), epsilon=EPSILON)


def instance_norm(use_running_average: bool, momentum: float) -> nn.Module:
    """Over positions."""
    return nn.InstanceNorm(epsilon=EPSILON)


NORMS: dict[str, Callable[..., nn.Module] | None] = {
    "batch norm": batch_norm,
    "group norm": group_norm,
    "layer norm": layer_norm,
    "instance norm": instance_norm,
    "no norm": None,
}


def network(norm: str, scale: float) -> training.Linen:
    """The network, for batches `scale` times the size of `--batch-size`."""
    factory = NORMS[norm]
    if factory is not None:
        factory = functools.partial(factory, momentum=0.9**scale)
    return training.Linen(CNN(factory, features=(16, 32), strides=(1, 2)))


def draw(accuracies: dict[str, dict[int, list[float]]]) -> Figure:
    """Mean and deviation against the batch size."""
    figure = Figure(figsize=(8, 4.8), dpi=110, layout="constrained")
    axes = figure.subplots(subplot_kw={"xlabel": "batch size (images)"})
    axes.set_xscale("log", base=2)
    for index, (norm, of_size) in enumerate(accuracies.items()):
        # Side by side, so that the bars do not cover one another.
        sizes = np.array(list(of_size)) * 1.04 ** (index - 2)
        pictures.points(axes, sizes, np.transpose(list(of_size.values())), norm)
    axes.set_xticks(BATCH_SIZES, map(str, BATCH_SIZES))
    pictures.accuracy_axis(axes)
    axes.legend()
    return figure


def main(argv: Sequence[str] | None = None) -> dict[str, dict[int, list[float]]]:
    """Trains with each norm and batch size; returns the accuracy of each seed, by norm and size."""
    args, digits = data.start(parser, argv)
    # All sizes see the same number of images: no remainder is dropped.
    images = len(digits.train_images) // max(BATCH_SIZES) * max(BATCH_SIZES)
    digits = digits._replace(
        train_images=digits.train_images[:images], train_labels=digits.train_labels[:images]
    )
    seeds = flags.seeds(args)
    accuracies: dict[str, dict[int, list[float]]] = {norm: {} for norm in NORMS}
    with tqdm(total=len(NORMS) * len(BATCH_SIZES) * len(seeds) * args.epochs, unit="epoch") as bar:
        for norm, size in itertools.product(NORMS, BATCH_SIZES):
            bar.set_description(f"{norm}, batches of {size}")
            scale = size / args.batch_size
            train = functools.partial(
                training.train,
                network(norm, scale),
                digits,
                args,
                bar,
                learning_rate=scale * args.learning_rate,
                optimizer=sgd,
                batch_size=size,
            )
            accuracies[norm][size] = [train(seed=seed)[1].test_accuracy[-1] for seed in seeds]
    rows = {norm: [report.spread(v) for v in of_size.values()] for norm, of_size in accuracies.items()}
    print(report.table("", [f"batches of {size}" for size in BATCH_SIZES], rows))
    pictures.save(draw(accuracies), args.out / "small_batches.png")
    return accuracies


if __name__ == "__main__":
    main()
