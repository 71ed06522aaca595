"""ResNet-18 with and without batch norm, at a learning rate and at ten times it, in Linen or NNX.

    python examples/resnet.py                   # in flax.linen, a quarter of its width
    python examples/resnet.py --model nnx       # the same in flax.nnx
    python examples/resnet.py --width 64        # its whole width: 16 times the work

Trains on the digits, drawn at 32x32 pixels, each time moved, turned and scaled at random, by Adam.
Without batch norm, the affine parameters stay, and so does the scale 0 at the end of each block, which
helps such a network too (De and Smith 2020). Prints a table and draws the learning curves. The width is
16 and the epochs are few so that it takes minutes on a processor.
"""

from shared import flags

parser = flags.parser(
    "ResNet-18 with and without batch norm, at two learning rates.",
    epochs=4,
    of_rate="Adam's; every run is repeated at ten times this rate",
    seeds=3,
)
parser.add_argument(
    "--model",
    choices=("linen", "nnx"),
    default="linen",
    help="the library that it is written in (default: %(default)s)",
)
parser.add_argument(
    "--width", type=flags.whole(1), default=16, help="features of the first stage (default: 16)"
)
if __name__ == "__main__":
    parser.parse_args()  # before the imports that take seconds, so that --help does not

import argparse
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from models import resnet, resnet_nnx
from shared import augmentation, data, pictures, report, runs, training

SIZE = 32


def networks(model: str, width: int) -> dict[str, training.Network]:
    """The network with batch norm and without, in the library that `model` names."""
    if model == "linen":
        norms = {"batch norm": resnet.batch_norm, "no batch norm": resnet.no_norm}
        make = functools.partial(resnet.resnet18, features=width)
        return {name: training.Linen(make(norm=norm)) for name, norm in norms.items()}
    norms = {"batch norm": resnet_nnx.batch_norm, "no batch norm": resnet_nnx.Affine}

    def create(rngs, norm):
        return resnet_nnx.ResNet(1, width, norm=norm, rngs=rngs)

    return {name: training.NNX(functools.partial(create, norm=norm)) for name, norm in norms.items()}


def train(
    network: training.Network,
    learning_rate: float,
    seed: int,
    digits: data.Digits,
    args: argparse.Namespace,
    bar: tqdm,
) -> runs.Run:
    """One run, on images that are moved in another way at each step."""
    keys = (jax.random.fold_in(jax.random.key(seed), step) for step in itertools.count())

    def step(state: training.State, images: Any, labels: Any) -> tuple[training.State, Any]:
        views = augmentation.random_views(next(keys), images, size=SIZE)
        options = {"network": network, "learning_rate": learning_rate}
        return training.train_step(state, views, labels, **options)

    state = training.create_state(network, digits.test_images, seed)
    predict = functools.partial(training.predict, network=network)
    return runs.record(state, step, predict, digits, args, bar, seed=seed)[1]


def main(argv: Sequence[str] | None = None) -> report.Runs:
    """Trains both networks at both rates; returns the runs of the seeds."""
    args, digits = data.start(parser, argv)
    digits = digits._replace(test_images=np.asarray(augmentation.upright(digits.test_images, SIZE)))
    rates, seeds = (args.learning_rate, 10 * args.learning_rate), flags.seeds(args)
    results = {}
    with tqdm(total=2 * len(rates) * len(seeds) * args.epochs, unit="epoch") as bar:
        for name, network in networks(args.model, args.width).items():
            for rate in rates:
                key = name, f"learning rate {rate:g}"
                bar.set_description(report.label(key))
                results[key] = [train(network, rate, seed, digits, args, bar) for seed in seeds]
    print(report.table_of_runs(results))
    picture = "resnet.png" if args.model == "linen" else "resnet_nnx.png"
    pictures.save(pictures.learning_curves(results), args.out / picture)
    return results


if __name__ == "__main__":
    main()
