"""Batch norm as the first layer: pixels from 0 to 255, as they come, instead of standardized ones.

    python examples/raw_pixels.py

The networks of `digits_cnn.py`, with and without batch norm after the convolutions, on pixels that are
standardized with the mean and deviation of the training images; on raw ones, which batch norm as the
first layer normalizes; and on raw ones with nothing in between. Prints the test accuracy after the
first and the last epoch, mean and standard deviation over the seeds, and draws the curves.
"""

import itertools
from collections.abc import Sequence

from tqdm import tqdm

import data
import learning_curves
import report
import trials
from digits_cnn import CNN
from linen_training import train


def standardized(digits: data.Digits) -> data.Digits:
    """Pixels of mean 0 and deviation 1 over the training images."""
    mean, deviation = digits.train_images.mean(), digits.train_images.std()
    return digits._replace(
        train_images=(digits.train_images - mean) / deviation,
        test_images=(digits.test_images - mean) / deviation,
    )


def raw(digits: data.Digits) -> data.Digits:
    """Pixels from 0 to 255."""
    return digits._replace(train_images=255 * digits.train_images, test_images=255 * digits.test_images)


def main(argv: Sequence[str] | None = None) -> dict[str, list[report.Run]]:
    """Trains each network on each input; returns the runs of all seeds by name."""
    parser = report.flags(
        "A small CNN on raw pixels, with batch norm first.", of_rate="Adam's", seeds=5
    )
    args, digits = report.parse(parser, argv)
    inputs = {
        "standardized": (False, standardized(digits)),
        "raw, batch norm first": (True, raw(digits)),
        "raw": (False, raw(digits)),
    }
    networks = {"batch norm inside": True, "none inside": False}
    runs = {}
    with tqdm(total=len(inputs) * len(networks) * args.seeds * args.epochs, unit="epoch") as bar:
        for (network, inside), (pixels, (first, images)) in itertools.product(
            networks.items(), inputs.items()
        ):
            name, model = f"{pixels}; {network}", CNN(inside, input_norm=first)
            runs[name] = [
                train(model, name, args.learning_rate, seed, images, args, bar)[1]
                for seed in trials.seeds(args)
            ]
    rows = {
        name: [trials.spread([run.test_accuracy[epoch] for run in each]) for epoch in (0, -1)]
        for name, each in runs.items()
    }
    print(trials.table("pixels; network", ("after epoch 1", f"after epoch {args.epochs}"), rows))
    learning_curves.draw(list(itertools.chain(*runs.values())), args.out / "raw_pixels.png")
    return runs


if __name__ == "__main__":
    main()
