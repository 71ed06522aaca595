"""Why jbn: one network with Flax's batch norm and with jbn's, on pixels as a sensor gives them.

    python examples/raw_pixels.py

Batch norm as the first layer takes the place of a preprocessing by hand, whatever scale the inputs come
in. Here they are the grey levels of the digits, 0 to 16, above a dark level, as of a camera that nobody
calibrated. float32 holds these numbers exactly; what is lost is lost in the layer. Prints the test
accuracy at each dark level, and draws it beside the training loss.
"""

from shared import flags

parser = flags.parser("Flax's batch norm and jbn's on inputs far from zero.", epochs=5, seeds=3)
if __name__ == "__main__":
    parser.parse_args()  # before the imports that take seconds, so that --help does not

import functools
from collections.abc import Sequence

import flax.linen
from matplotlib.figure import Figure
from tqdm import tqdm

import jbn
from models.cnn import CNN
from shared import data, pictures, report, runs, training

DARK_LEVELS = (0, 1_000, 10_000, 30_000, 100_000, 1_000_000)
LAYERS = {
    "flax, default": flax.linen.BatchNorm,
    "flax, use_fast_variance=False": functools.partial(flax.linen.BatchNorm, use_fast_variance=False),
    "jbn": jbn.linen.BatchNorm,
}


def above(digits: data.Digits, level: float) -> data.Digits:
    """The digits with grey levels from 0 to 16 above a dark level."""
    train_images, test_images = (level + 16 * v for v in (digits.train_images, digits.test_images))
    return digits._replace(train_images=train_images, test_images=test_images)


def draw(results: dict[str, list[list[runs.Run]]]) -> Figure:
    """Test accuracy and training loss after the last epoch: each seed, and a line for the mean."""
    figure = Figure(figsize=(11, 4.2), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    places = range(len(DARK_LEVELS))
    for (name, levels), style in zip(results.items(), (":o", "--s", "-^"), strict=False):
        for axes, values in ((left, "test_accuracy"), (right, "train_loss")):
            last = [[getattr(run, values)[-1] for run in each] for each in levels]
            pictures.curve(axes, places, list(zip(*last, strict=True)), name, style)
    for axes in (left, right):
        axes.set_xlabel("dark level")
        axes.set_xticks(places, [f"{level:,}" for level in DARK_LEVELS])
        axes.grid(alpha=0.3)
    pictures.accuracy_axis(left)
    right.set(ylabel="training loss (cross entropy)", yscale="log")
    left.legend()
    return figure


def main(argv: Sequence[str] | None = None) -> dict[str, list[list[runs.Run]]]:
    """Trains with each layer at each dark level; returns the runs of the seeds, by layer and level."""
    args, digits = data.start(parser, argv)
    inputs, seeds = [above(digits, level) for level in DARK_LEVELS], flags.seeds(args)
    results = {}
    with tqdm(total=len(LAYERS) * len(inputs) * len(seeds) * args.epochs, unit="epoch") as bar:
        for name, layer in LAYERS.items():
            bar.set_description(name)
            first = functools.partial(layer, momentum=0.9)
            network = training.Linen(CNN(None, input_norm=first, features=(16, 32), strides=(1, 2)))
            options = {"args": args, "bar": bar, "learning_rate": args.learning_rate}
            results[name] = [
                [training.train(network, pixels, seed=seed, **options)[1] for seed in seeds]
                for pixels in inputs
            ]
    rows = {
        f"{level:,}": [report.last_accuracy(levels[index]) for levels in results.values()]
        for index, level in enumerate(DARK_LEVELS)
    }
    print(report.table("dark level", list(LAYERS), rows))
    pictures.save(draw(results), args.out / "raw_pixels.png")
    return results


if __name__ == "__main__":
    main()
