"""Folding for inference: ResNet-18 with its batch norms, and with them in the convolutions.

    python examples/fold.py

Trains for an epoch, then prints what `jbn.tools.fold` did, by how much the logits differ, and the time
that the test images take against that before: in turns, the median of the ratios and 80% of them.
"""

from shared import flags

parser = flags.parser("Batch norm folded into the convolutions of ResNet-18.", epochs=1)
parser.add_argument("--width", type=flags.whole(1), default=16, help="of 1st stage (default: 16)")
parser.add_argument("--runs", type=flags.whole(1), default=30, help="of each (default: 30)")
if __name__ == "__main__":
    parser.parse_args()  # before the imports that take seconds, so that --help does not

import functools
import time
from collections.abc import Sequence

import jax
import numpy as np
from tqdm import tqdm

import jbn
from models.resnet import resnet18
from shared import data, training


def seconds(function, *args) -> float:
    """Of one run."""
    start = time.perf_counter()
    jax.block_until_ready(function(*args))
    return time.perf_counter() - start


def main(argv: Sequence[str] | None = None) -> tuple[float, ...]:
    """Trains, folds, compares; returns the relative difference and three quantiles of the ratios."""
    args, digits = data.start(parser, argv)
    model, images = resnet18(features=args.width), digits.test_images
    flags_of_run = {"seed": args.seed, "learning_rate": args.learning_rate}
    with tqdm(total=args.epochs, unit="epoch") as bar:
        state, _ = training.train(training.Linen(model), digits, args, bar, **flags_of_run)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    apply, folded, _ = jbn.tools.fold(model, variables, images, train=False)

    before, after = (jax.jit(functools.partial(f, train=False)) for f in (model.apply, apply))
    expected, actual = before(variables, images), after(folded, images)
    difference = float(abs(actual - expected).max() / abs(expected).max())
    print(f"largest difference of the logits, by the largest logit: {difference:.1e}")
    runs = range(args.runs)
    ratios = [seconds(after, folded, images) / seconds(before, variables, images) for _ in runs]
    low, median, high = np.quantile(ratios, (0.1, 0.5, 0.9))
    print(f"time by that before: {median:.2f} ({low:.2f} to {high:.2f})")
    return difference, low, median, high


if __name__ == "__main__":
    main()
