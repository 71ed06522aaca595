"""An LSTM over sequences of different length, with sequence-wise batch norm and without.

    python examples/rnn.py

A digit's rows are the steps of a sequence, of which the last ones are missing: none to half of them.
Two layers of LSTM read the rest. As in Laurent et al. (2016), batch norm is on the input-to-hidden
projections alone, with statistics over the sequences and their steps together. Padding is no data, and
`mask` leaves it out of the statistics; a third network counts it in, to show what that does. Prints a
table with the spread over the seeds and draws the learning curves.
"""

from shared import flags

parser = flags.parser(
    "An LSTM over rows, with and without batch norm, at two learning rates.",
    epochs=20,
    of_rate="Adam's; every run is repeated at ten times this rate",
    seeds=3,
)
if __name__ == "__main__":
    parser.parse_args()  # before the imports that take seconds, so that --help does not

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from tqdm import tqdm

import jbn
from shared import data, pictures, report, training

HIDDEN = 64
LAYERS = 2
NORMS = ("batch norm", "batch norm, padding counted", "no batch norm")


def shortened(images: np.ndarray, seed: int) -> np.ndarray:
    """The images (N, height, width, 1) with up to half of their rows, the last ones, missing: NaN.

    NaN, so that one array holds the pixels and the lengths.
    """
    height = images.shape[1]
    lengths = np.random.default_rng(seed).integers(-(-height // 2), height + 1, size=len(images))
    present = np.arange(height) < lengths[:, None]
    return np.where(present[..., None, None], images, np.float32(np.nan))


class LSTM(nn.Module):
    """One layer, with an orthogonal recurrent kernel.

        i, f, g, o = norm(x W) + h U
        c = sigmoid(f) c + sigmoid(i) tanh(g)
        h = sigmoid(o) tanh(c)

    Attributes:
        norm: one of `NORMS`.
    """

    norm: str

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, *, train: bool) -> jax.Array:
        """x (N, T, features), mask (N, T) to h (N, T, hidden), which the padding leaves as it was."""
        batch_norm = self.norm != "no batch norm"
        # Batch norm subtracts the mean, and a bias before it with it.
        projected = nn.Dense(4 * HIDDEN, use_bias=not batch_norm)(x)
        if batch_norm:
            norm = jbn.linen.BatchNorm(use_running_average=not train, momentum=0.9)
            projected = norm(projected, mask=mask[..., None] if self.norm == "batch norm" else None)
        recurrent = self.param("recurrent", nn.initializers.orthogonal(), (HIDDEN, 4 * HIDDEN))

        def step(carry, inputs):
            c, h = carry
            projected, present = inputs
            i, f, g, o = jnp.split(projected + h @ recurrent, 4, axis=-1)
            c = jnp.where(present, nn.sigmoid(f) * c + nn.sigmoid(i) * jnp.tanh(g), c)
            h = jnp.where(present, nn.sigmoid(o) * jnp.tanh(c), h)
            return (c, h), h

        nothing = jnp.zeros((len(x), HIDDEN))
        steps_first = (jnp.swapaxes(projected, 0, 1), jnp.swapaxes(mask, 0, 1)[..., None])
        _, h = jax.lax.scan(step, (nothing, nothing), steps_first)
        return jnp.swapaxes(h, 0, 1)


class Classifier(nn.Module):
    """Layers of LSTM, and a dense one on the last state of the last; `norm` is one of `NORMS`."""

    norm: str

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Images (N, T, features, 1) with missing rows, from `shortened`, to logits (N, 10)."""
        x = images[..., 0]
        mask = ~jnp.isnan(x[..., 0])
        x = jnp.where(mask[..., None], x, 0)
        for _ in range(LAYERS):
            x = LSTM(self.norm)(x, mask, train=train)
        return nn.Dense(10)(x[:, -1])


def main(argv: Sequence[str] | None = None) -> report.Runs:
    """Trains every network with every seed; returns the runs of the seeds."""
    args, digits = data.start(parser, argv)
    # As with the split, the lengths are part of the data: the same with every seed.
    digits = digits._replace(
        train_images=shortened(digits.train_images, 0), test_images=shortened(digits.test_images, 1)
    )
    rates, seeds = (args.learning_rate, 10 * args.learning_rate), flags.seeds(args)
    results = {}
    with tqdm(total=len(NORMS) * len(rates) * len(seeds) * args.epochs, unit="epoch") as bar:
        for norm, rate in itertools.product(NORMS, rates):
            key, network = (norm, f"learning rate {rate:g}"), training.Linen(Classifier(norm))
            bar.set_description(report.label(key))
            options = {"args": args, "bar": bar, "learning_rate": rate}
            results[key] = [training.train(network, digits, seed=seed, **options)[1] for seed in seeds]
    print(report.table_of_runs(results))
    pictures.save(pictures.learning_curves(results), args.out / "rnn.png")
    return results


if __name__ == "__main__":
    main()
