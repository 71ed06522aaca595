"""Folding for inference: ResNet-18 with its batch norms, and with them in the convolutions.

    python examples/fold.py

Trains for an epoch, then prints what `jbn.tools.fold` did, by how much the logits differ, and the time
that the test images take against that before: in turns, the median of the ratios and 80% of them.
"""

from shared import flags

parser = flags.parser("Batch norm folded into the convolutions of ResNet-18.", epochs=1)
parser.add_argument(
    "--width", type=flags.whole(1), default=16, help="of stage 1 (default: %(default)s)"
)
parser.add_argument("--runs", type=flags.whole(1), default=30, help="of each (default: %(default)s)")
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
    """One run."""
    start = time.perf_counter()
    jax.block_until_ready(function(*args))
    return time.perf_counter() - start


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Trains, folds and compares; returns the relative difference and quantiles of the ratios."""
    args, digits = data.start(parser, argv)
    model = resnet18(features=args.width)
    with tqdm(total=args.epochs, unit="epoch") as bar:
        rate, seed = args.learning_rate, args.seed
        network = training.Linen(model)
        state, _ = training.train(network, digits, args, bar, seed=seed, learning_rate=rate)
    variables, images = {"params": state.params, "batch_stats": state.batch_stats}, digits.test_images
    apply, folded, _ = jbn.tools.fold(model, variables, images, train=False)

    before, after = (jax.jit(functools.partial(f, train=False)) for f in (model.apply, apply))
    expected, actual = before(variables, images), after(folded, images)
    difference = float(abs(actual - expected).max() / abs(expected).max())
    print(f"largest difference of the logits, by the largest logit: {difference:.1e}")
    each = [
        (seconds(after, folded, images), seconds(before, variables, images)) for _ in range(args.runs)
    ]
    low, median, high = np.quantile([new / old for new, old in each], (0.1, 0.5, 0.9))
    print(f"time by that before: {median:.2f} ({low:.2f} to {high:.2f})")
    return {"difference": difference, "low": low, "median": median, "high": high}


if __name__ == "__main__":
    main()
