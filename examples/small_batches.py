"""How small a batch may be, with each kind of batch norm and with norms that do not look at the batch.

    python examples/small_batches.py                  # dense layers: 2 images are 2 values per channel
    python examples/small_batches.py --model cnn      # convolutions: 2 images of 8x8 pixels are 128

Two layers with a norm and a dense one (flax.linen, SGD with momentum), with jbn's batch norm and its
variants, Flax's group and layer norm, and no norm. Every training sees the same images as often. As in
Wu and He (2018), who asked the same of ImageNet, the learning rate is in proportion to the batch size,
and batch norm's momentum is 0.9 at `--batch-size` and such at the others that the running statistics
average over as many images.

Prints the test accuracy for each norm and batch size, with its spread over the seeds, and draws it.
"""

from shared import flags

parser = flags.parser(
    "Test accuracy against batch size, with batch norm, its variants, other norms and none.",
    epochs=5,
    of_batch="the batch size that --learning-rate is for",
    learning_rate=0.05,
    of_rate="SGD's at --batch-size; at the others in proportion",
    seeds=5,
)
parser.add_argument("--model", choices=("mlp", "cnn"), default="mlp", help="the network (default: mlp)")
if __name__ == "__main__":
    parser.parse_args()  # before the imports that take seconds, so that --help does not

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import optax
from flax import linen as nn
from matplotlib.figure import Figure
from tqdm import tqdm

import jbn
from models.cnn import CNN
from models.linen_mlp import MLP
from shared import data, pictures, report, training

BATCH_SIZES = (2, 4, 16, 128)
NORMS = (
    "batch norm",
    "ghost",
    "renorm",
    "batch group",
    "streaming",
    "group norm",
    "layer norm",
    "no norm",
)
EPSILON = 1e-5
GROUPS = 8
sgd = functools.partial(optax.sgd, momentum=0.9)


def factory(name: str, momentum: float, steps: int) -> Callable[..., nn.Module] | None:
    """One of `NORMS`, to be called with `use_running_average`; an epoch has `steps`."""
    if name == "no norm":
        return None
    if name in ("group norm", "layer norm"):
        # Layer norm over positions and channels, as in Wu and He, is group norm with one group.
        groups = GROUPS if name == "group norm" else 1
        return lambda use_running_average: nn.GroupNorm(num_groups=groups, epsilon=EPSILON)
    # Plain batch norm for half an epoch, and the full limits after one and two.
    limits: dict[str, Any] = {**jbn.ioffe_warmup(begin=steps // 2, r_end=2 * steps, d_end=steps)}
    norms = {
        "batch norm": jbn.plain,
        "ghost": jbn.ghost(size=16, uneven=True),
        "renorm": jbn.renorm(**limits),
        "batch group": jbn.batch_group(GROUPS),
        "streaming": jbn.streaming(),
    }
    return functools.partial(jbn.linen.BatchNorm, norm=norms[name], momentum=momentum, epsilon=EPSILON)


def network(model: str, norm: str, scale: float, steps: int) -> training.Linen:
    """The network, for batches `scale` times the size of `--batch-size`, `steps` of them an epoch."""
    norm_factory = factory(norm, 0.9**scale, steps)
    if model == "mlp":
        return training.Linen(MLP(norm_factory))
    return training.Linen(CNN(norm_factory, features=(16, 32), strides=(1, 2)))


def draw(accuracies: dict[str, dict[int, list[float]]]) -> Figure:
    """Mean and deviation against the batch size."""
    figure = Figure(figsize=(8, 4.8), dpi=110, layout="constrained")
    axes = figure.subplots(subplot_kw={"xlabel": "batch size (images)"})
    axes.set_xscale("log", base=2)
    for index, (norm, of_size) in enumerate(accuracies.items()):
        # Side by side, so that the bars do not cover one another.
        sizes = np.array(list(of_size)) * 1.03 ** (index - 4)
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
                network(args.model, norm, scale, images // size),
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
    name = "small_batches" if args.model == "mlp" else f"small_batches_{args.model}"
    pictures.save(draw(accuracies), args.out / f"{name}.png")
    return accuracies


if __name__ == "__main__":
    main()
