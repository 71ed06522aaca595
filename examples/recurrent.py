"""The batch-normalized LSTM, with statistics for each step of time, on sequences of different length.

    python examples/recurrent.py                # row by row: at most 8 steps
    python examples/recurrent.py --by pixels    # pixel by pixel: at most 64, and as much longer

Cooijmans et al. (2017) normalize the recurrent projection and the cell too, not the input alone:

    i, f, g, o = BN(h U) + BN(x W) + b
    c = sigmoid(f) c + sigmoid(i) tanh(g)
    h = sigmoid(o) tanh(BN(c))

The first steps have other statistics than the later ones: `jbn.timesteps` keeps them apart, and a
`mask` leaves out the sequences that have ended. Compared with one set of statistics for all steps, and
with no norm; the first two train alike, for running statistics have no part in training, and differ in
inference. A digit is read without its last rows: none to half of them. Prints the test
accuracies with their spread over the seeds and draws the learning curves.
"""

from shared import flags

parser = flags.parser(
    "A batch-normalized LSTM over rows, with statistics per step, for all steps, and without.",
    epochs=20,
    of_rate="Adam's; every run is repeated at ten times this rate",
    seeds=3,
)
parser.add_argument(
    "--by", choices=("rows", "pixels"), default="rows", help="what a step reads (default: %(default)s)"
)
if __name__ == "__main__":
    parser.parse_args()  # before the imports that take seconds, so that --help does not

import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from tqdm import tqdm

import jbn
from rnn import shortened
from shared import data, pictures, report, training

HIDDEN = 64
STEPS = 64
NORMS: dict[str, jbn.Norm | None] = {
    "statistics per step": jbn.timesteps(STEPS),
    "statistics of all steps": jbn.plain,
    "no batch norm": None,
}


class Cell(nn.Module):
    """One step of the LSTM.

    Attributes:
        norm: one of `NORMS`' values.
        train: whether statistics are the batch's.
    """

    norm: jbn.Norm | None
    train: bool

    @nn.compact
    def __call__(self, carry, inputs):
        """(c, h) and (step, x, present) to the next (c, h); what has ended stays as it is."""
        (c, h), (step, x, present) = carry, inputs
        normalize = functools.partial(self.normalize, step=step, mask=present)
        dense = functools.partial(nn.Dense, 4 * HIDDEN, use_bias=False)
        recurrent = dense(kernel_init=nn.initializers.orthogonal(), name="recurrent")(h)
        gates = normalize(recurrent, "norm_h") + normalize(dense(name="input")(x), "norm_x")
        bias = self.param("bias", nn.initializers.zeros, (4 * HIDDEN,))
        i, f, g, o = jnp.split(gates + bias, 4, axis=-1)
        new_c = nn.sigmoid(f) * c + nn.sigmoid(i) * jnp.tanh(g)
        new_h = nn.sigmoid(o) * jnp.tanh(normalize(new_c, "norm_c", use_bias=True))
        return (jnp.where(present, new_c, c), jnp.where(present, new_h, h)), None

    def normalize(self, x, name, *, step, mask, use_bias=False):
        """BN(x), with the scale of 0.1 at first that it needs here."""
        if self.norm is None:
            return x
        layer = jbn.linen.BatchNorm(
            use_running_average=not self.train,
            momentum=0.9,
            use_bias=use_bias,
            scale_init=nn.initializers.constant(0.1),
            norm=self.norm,
            name=name,
        )
        return layer(x, mask=mask, **({} if self.norm == jbn.plain else {"step": step}))


class Classifier(nn.Module):
    """The LSTM, and a dense layer on its last state; `norm` is one of `NORMS`' values."""

    norm: jbn.Norm | None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Images (N, T, features, 1) with missing rows, from `shortened`, to logits (N, 10)."""
        x = jnp.swapaxes(images[..., 0], 0, 1)
        present = ~jnp.isnan(x[..., :1])
        x = jnp.where(present, x, 0)
        c = h = jnp.zeros((len(images), HIDDEN))
        if train:
            # The norm of a state of zeros has variance 0, and its gradients are multiplied by hundreds.
            h = 0.1 * jax.random.normal(jax.random.key(0), h.shape)
        inputs = jnp.arange(len(x)), x, present
        cell = Cell(self.norm, train)
        if self.is_initializing():
            # A scan carries variables that exist before it.
            cell((c, h), jax.tree.map(lambda v: v[0], inputs))
        scan = nn.scan(
            lambda cell, carry, inputs: cell(carry, inputs),
            variable_broadcast="params",
            variable_carry="batch_stats",
            split_rngs={"params": False},
        )
        (_, h), _ = scan(cell, (c, h), inputs)
        return nn.Dense(10)(h)


def main(argv: Sequence[str] | None = None) -> report.Runs:
    """Trains every network with every seed; returns the runs of the seeds."""
    args, digits = data.start(parser, argv)
    digits = digits._replace(
        train_images=shortened(digits.train_images, 0), test_images=shortened(digits.test_images, 1)
    )
    if args.by == "pixels":
        train, test = (v.reshape(len(v), -1, 1, 1) for v in (digits.train_images, digits.test_images))
        digits = digits._replace(train_images=train, test_images=test)
    rates, seeds = (args.learning_rate, 10 * args.learning_rate), flags.seeds(args)
    results = {}
    with tqdm(total=len(NORMS) * len(rates) * len(seeds) * args.epochs, unit="epoch") as bar:
        for (name, norm), rate in itertools.product(NORMS.items(), rates):
            key, network = (name, f"learning rate {rate:g}"), training.Linen(Classifier(norm))
            bar.set_description(report.label(key))
            options = {"args": args, "bar": bar, "learning_rate": rate}
            results[key] = [training.train(network, digits, seed=seed, **options)[1] for seed in seeds]
    print(report.table_of_runs(results))
    name = "recurrent.png" if args.by == "rows" else "recurrent_pixels.png"
    pictures.save(pictures.learning_curves(results), args.out / name)
    return results


if __name__ == "__main__":
    main()
