"""A ResNet with and without batch norm, at a learning rate and at ten times it, with several seeds.

    python examples/resnet.py                                 # ResNet-18 at a quarter of its width
    python examples/resnet.py --width 64                      # at its whole width: 16 times the work
    python examples/resnet.py --model nnx                     # three blocks in flax.nnx
    python examples/resnet.py --model resnet50 --steps 20     # what a step at 224x224 costs

Trains on the digits, drawn at 32x32 pixels, each time moved, turned and scaled at random, by Adam.
Without batch norm, the affine parameters stay, and so does the scale 0 at the end of each block, which
helps such a network too (De and Smith 2020). Prints a table and draws the learning curves. ResNet-50 is
not trained to the end: its table has the speed of a step and the memory of its compiled program. The
first command takes about 3 minutes on two cores, which is why the width is 16 and the epochs are few.
"""

import argparse
import functools
import itertools
from collections.abc import Callable, Sequence

from tqdm import tqdm

import data
import learning_curves
import report
import resnet_model
import resnet_nnx_model
import resnet_training
import step_cost
import trials
from resnet_training import Network, linen_network, nnx_network

NAMES = ("batch norm", "no batch norm")


def resnet18(width: int) -> dict[str, Network]:
    """ResNet-18 for small images, with `width` features in its first stage."""
    norms = zip(NAMES, (resnet_model.batch_norm, resnet_model.no_norm), strict=True)
    return {n: linen_network(resnet_model.resnet18(norm=norm, features=width)) for n, norm in norms}


def resnet50(width: int) -> dict[str, Network]:
    """ResNet-50 for images of 224x224 pixels and three channels."""
    model = functools.partial(resnet_model.resnet50, features=width, small_images=False)
    norms = zip(NAMES, (resnet_model.batch_norm, resnet_model.no_norm), strict=True)
    return {n: linen_network(model(norm=norm), size=224, channels=3) for n, norm in norms}


def small_nnx(width: int) -> dict[str, Network]:
    """Three blocks in flax.nnx, with `width` features in the first."""
    model = functools.partial(resnet_nnx_model.SmallResNet, 1, width)
    norms = zip(NAMES, (resnet_nnx_model.batch_norm, resnet_nnx_model.Affine), strict=True)
    return {n: nnx_network(lambda rngs, norm=norm: model(norm=norm, rngs=rngs)) for n, norm in norms}


# The networks by width, and the width and the batch size where the flags name none.
MODELS: dict[str, tuple[Callable[[int], dict[str, Network]], int, int]] = {
    "resnet18": (resnet18, 16, 32),
    "resnet50": (resnet50, 64, 8),
    "nnx": (small_nnx, 16, 32),
}


def train(
    networks: dict[str, Network], digits: data.Digits, args: argparse.Namespace
) -> list[report.Run]:
    """Trains each network at both rates with each seed; prints the table and draws the curves."""
    rates = (args.learning_rate, 10 * args.learning_rate)
    settings = list(itertools.product(rates, networks.items(), trials.seeds(args)))
    runs = []
    with tqdm(total=len(settings) * args.epochs, unit="epoch") as bar:
        for rate, (name, network), seed in settings:
            state = resnet_training.create_state(seed, network=network)
            step = functools.partial(resnet_training.train_step, network=network, learning_rate=rate)
            logits = functools.partial(resnet_training.predict, network=network)
            own = {"seed": seed}
            runs.append(report.record(name, rate, state, step, logits, digits, args, bar, **own)[1])
    name = "resnet" if args.model == "resnet18" else f"resnet_{args.model}"
    print(learning_curves.table(runs))
    learning_curves.draw(runs, args.out / f"{name}.png")
    return runs


def measure_steps(
    networks: dict[str, Network], digits: data.Digits, args: argparse.Namespace
) -> dict[str, step_cost.Cost]:
    """Runs some steps of each network; prints what they cost and draws their losses."""
    images, labels = digits.train_images, digits.train_labels
    epochs = data.shuffled_epochs(len(images), args.batch_size, args.steps, args.seed)
    batches = list(itertools.islice(itertools.chain.from_iterable(epochs), args.steps))
    costs = {}
    with tqdm(total=len(networks) * args.steps, unit="step") as bar:
        for name, network in networks.items():
            bar.set_description(name)
            costs[name] = step_cost.measure(
                resnet_training.train_step,
                resnet_training.create_state(args.seed, network=network),
                ((images[b], labels[b]) for b in batches),
                bar,
                network=network,
                learning_rate=args.learning_rate,
            )
    print(step_cost.table(costs))
    trials.save(step_cost.figure(costs), args.out / f"{args.model}.png")
    return costs


def main(argv: Sequence[str] | None = None) -> list[report.Run] | dict[str, step_cost.Cost]:
    """Trains, or measures steps of `resnet50`; returns what the table is made of."""
    parser = report.flags(
        "A ResNet with and without batch norm, at two learning rates.",
        of_batch="images in a minibatch, 8 where --model resnet50 is given without it",
        epochs=4,
        seeds=3,
    )
    parser.add_argument(
        "--model", choices=MODELS, default="resnet18", help="which network (default: %(default)s)"
    )
    parser.add_argument(
        "--width",
        type=report.whole(1),
        help="features of the first stage (default: 16; 64 for resnet50)",
    )
    parser.add_argument(
        "--steps",
        type=report.whole(1),
        default=20,
        help="steps of each network with --model resnet50 (default: %(default)s)",
    )
    model = parser.parse_known_args(argv)[0].model
    networks, width, batch_size = MODELS[model]
    parser.set_defaults(width=width, batch_size=batch_size)
    args, digits = report.parse(parser, argv)
    run = measure_steps if model == "resnet50" else train
    return run(networks(args.width), digits, args)


if __name__ == "__main__":
    main()
