"""Digits of two domains in one training, with statistics that they share or that each has for itself.

    python examples/two_domains.py

Two pairs of Dense 128 - batch norm - ReLU and a dense layer learn the digits as they are and shifted:
inverted, at a quarter of the contrast. The batches either mix the domains or are of one at a time, and
batch norm is plain or `jbn.domains(2)`, which is told the domain by `domain=`: one index for a
batch of one domain, one for each example of a mixed batch. Scale and bias serve both domains, but in
`jbn.conditional()`, where the statistics are shared and each domain has its own scale and bias.

    half and half  each domain has half of the images
    rare           one image of ten is shifted
    drifting       nine of ten are shifted in the first epoch, one of ten in the last

Prints the test accuracy of each domain after the last epoch, and draws it.
"""

from shared import flags

parser = flags.parser("Digits of two domains, with batch statistics shared or apart.", seeds=5)
if __name__ == "__main__":
    parser.parse_args()  # before the imports that take seconds, so that --help does not

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from tqdm import tqdm

import jbn
from models import mlp
from shared import data, pictures, report, side_by_side

HIDDEN = 128
DOMAINS = ("as they are", "shifted")
# The share of shifted images in the first epoch and in the last.
MIXES = {"half and half": (0.5, 0.5), "rare": (0.1, 0.1), "drifting": (0.9, 0.1)}


@dataclasses.dataclass(frozen=True)
class Modulated(jbn.Norm):
    """Shared statistics; a scale and a bias for each domain, picked for each example."""

    def init(self, features, **options):
        """Parameters of shape (domains, features)."""
        params, batch_stats = jbn.init(features, **options)
        return {name: jnp.stack([v] * len(DOMAINS)) for name, v in params.items()}, batch_stats

    def apply(self, x, params, batch_stats, *, domain, train, **options):
        """`jbn.conditional` with the parameters of `domain`."""
        of_domain = {name: v[domain] for name, v in params.items()}
        return jbn.conditional().apply(x, {}, batch_stats, train=train, **of_domain, **options)


class Way(NamedTuple):
    """A norm, and whether a batch mixes the domains."""

    norm: jbn.Norm
    mixed: bool


WAYS = {
    "plain, mixed batches": Way(jbn.plain, mixed=True),
    "plain, one domain a batch": Way(jbn.plain, mixed=False),
    "conditional, mixed batches": Way(Modulated(), mixed=True),
    "domains, an index per example": Way(jbn.domains(2), mixed=True),
    "domains, an index per batch": Way(jbn.domains(2), mixed=False),
}


def shifted(images: Any) -> Any:
    """The second domain."""
    return (1 - images) / 4


def apply(params: Any, batch_stats: Any, images: Any, domain: Any, way: Way, *, train: bool) -> Any:
    """Logits and running statistics; `domain` is one index or one for each image."""
    options = {} if way.norm == jbn.plain else {"domain": domain}
    return mlp.apply(params, batch_stats, images, norm=way.norm, train=train, momentum=0.9, **options)


def loss(params: Any, batch_stats: Any, minibatch: Any, *, way: Way) -> tuple[jax.Array, Any]:
    """The cross entropy, and the new statistics."""
    images, labels, domain = minibatch
    index = domain if way.mixed else domain[0]
    logits, batch_stats = apply(params, batch_stats, images, index, way, train=True)
    return side_by_side.cross_entropy(logits, labels), batch_stats


@functools.partial(jax.jit, static_argnames="way")
def evaluate(states: side_by_side.State, *, digits: data.Digits, way: Way) -> jax.Array:
    """Test accuracy on each domain for each seed, (seeds, domains), with the running statistics."""
    images, labels = digits.test_images, digits.test_labels

    def one(state):
        logits = [
            apply(state.params, state.batch_stats, x, domain, way, train=False)[0]
            for domain, x in enumerate((images, shifted(images)))
        ]
        return jnp.stack([side_by_side.accuracy(v, labels) for v in logits])

    return jax.vmap(one)(states)


def orders(size: int, args: Any, mix: tuple[float, float], *, mixed: bool) -> Iterator[np.ndarray]:
    """As `side_by_side.orders`; image i of the second domain is at i + size."""
    rng = np.random.default_rng(args.seed)
    shares = np.linspace(*mix, args.epochs)
    epochs = side_by_side.orders(size, args.batch_size, args.epochs, flags.seeds(args))
    for share, order in zip(shares, epochs, strict=True):
        drawn = rng.random(order.shape if mixed else (*order.shape[:2], 1)) < share
        yield order + size * np.int32(drawn)


def draw(results: Mapping[tuple[str, str], np.ndarray]) -> Figure:
    """For each mix a group of bars for each domain: mean and deviation after the last epoch."""
    mixes = list(dict.fromkeys(mix for mix, _ in results))
    figure = Figure(figsize=(11, 4.4), dpi=110, layout="constrained")
    panels = figure.subplots(1, len(mixes), sharey=True, squeeze=False)[0]
    for axes, mix in zip(panels, mixes, strict=True):
        ways = [(way, values[-1]) for (m, way), values in results.items() if m == mix]
        for index, (way, last) in enumerate(ways):
            places = 0.16 * (index - (len(ways) - 1) / 2) + np.arange(len(DOMAINS))
            deviation = last.std(0, ddof=1) if len(last) > 1 else None
            axes.bar(places, last.mean(0), 0.15, yerr=deviation, capsize=3, label=way)
        pictures.accuracy_axis(axes)
        axes.set_xticks(range(len(DOMAINS)), list(DOMAINS))
        axes.set(title=mix, xlabel="digits", ylabel="", ylim=(0, 1.02))
    panels[0].set_ylabel("test accuracy")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def main(argv: Sequence[str] | None = None) -> dict[tuple[str, str], np.ndarray]:
    """Trains each mix in each way; returns the test accuracies, (epochs + 1, seeds, domains)."""
    args, digits = data.start(parser, argv)
    images, labels, *_ = digits
    arrays = jax.tree.map(
        jnp.asarray,
        (
            np.concatenate([images, shifted(images)]),
            np.tile(labels, 2),
            np.repeat(np.arange(2), len(images)),
        ),
    )
    optimizer, seeds = optax.adam(args.learning_rate), flags.seeds(args)
    sizes = (images[0].size, HIDDEN, HIDDEN, 10)
    results = {}
    with tqdm(total=len(WAYS) * len(MIXES) * args.epochs, unit="epoch") as bar:
        for name, way in WAYS.items():
            of_way, create = (
                functools.partial(loss, way=way),
                functools.partial(mlp.init, norm=way.norm),
            )
            states = side_by_side.create(lambda key, c=create: c(key, sizes), optimizer, seeds)
            for mix in MIXES:
                bar.set_description(f"{name}, {mix}")
                order = orders(len(images), args, MIXES[mix], mixed=way.mixed)
                test = functools.partial(evaluate, digits=digits, way=way)
                results[mix, name] = side_by_side.train(
                    of_way, optimizer, states, order, arrays, test, bar
                )
    results = {key: results[key] for key in itertools.product(MIXES, WAYS)}
    rows = {report.label(k): [report.spread(a) for a in v[-1].T] for k, v in results.items()}
    print(report.table("", [f"digits {domain}" for domain in DOMAINS], rows))
    pictures.save(draw(results), args.out / "two_domains.png")
    return results


if __name__ == "__main__":
    main()
