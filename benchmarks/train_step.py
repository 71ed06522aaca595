"""What does batch norm add to a whole step of training? ResNet-18 and a small CNN, by norm.

    python -m benchmarks train_step

The same network without a norm (the identity), with flax.linen's and with jbn's. A step is the loss,
its gradients and SGD with momentum, one jitted program that donates its state; the loop over the steps
is Python's, as in most training, the norms in turn. Before a time is taken, loss, gradients and new
running statistics of jbn must be Flax's.
"""

import argparse
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from flax import linen as nn

from benchmarks.shared import networks, processes, report, timing

BASE = "no norm"
NETWORKS = {"resnet18": (32, 32, 3), "small_cnn": (8, 8, 1)}  # and their images


def models(network: str, width: int) -> dict[str, nn.Module]:
    """The network with each norm."""
    if network == "small_cnn":
        return {name: networks.Stack(norm) for name, norm in networks.NORMS.items()}
    make = functools.partial(networks.resnet18, features=width)
    return {name: make(norm=norm) for name, norm in networks.NORMS.items()}


def prepare(made: Mapping[str, nn.Module], images: Any, labels: Any, seed: int) -> dict[str, Any]:
    """By norm a function that makes the next step, the first made and compared with Flax's."""
    firsts, steps = {}, {}
    for name, model in made.items():
        step = jax.jit(networks.step_of(model), donate_argnums=0)
        state, loss = step(networks.create_state(model, images[:1], seed), images, labels)
        # The momentum of SGD's state is, after one step, the gradient.
        firsts[name] = jax.device_get(((loss, state.batch_stats), state.opt_state))
        steps[name] = _carrying(step, state, images, labels)
    for name in set(made) - {BASE, "flax"}:
        networks.require_equal(name, firsts[name], firsts["flax"])
    return steps


def _carrying(step, state, images, labels):
    def run():
        nonlocal state
        state, loss = step(state, images, labels)
        return state, loss

    return run


def measure(options: argparse.Namespace) -> dict[str, dict[str, dict[str, float]]]:
    """By network and norm: milliseconds per step, and their ratios."""
    found = {}
    for network in options.network:
        images, labels = networks.data((options.batch, *NETWORKS[network]), options.seed)
        steps = prepare(models(network, options.width), images, labels, options.seed)
        timers = {name: timing.of_calls(run) for name, run in steps.items()}
        times = timing.rounds(timers, options.rounds)
        found[network] = {
            name: {
                "ms": timing.milliseconds(times[name]),
                "by no norm": timing.ratio(times, name, BASE),
                "by flax": timing.ratio(times, name, "flax"),
            }
            for name in times
        }
    return found


def table(network: str, rows: Mapping[str, Any], batch: int) -> str:
    """A row per norm."""
    cells = {
        name: {
            "by that without a norm": report.span(row["by no norm"]),
            "by that with Flax's": report.span(row["by flax"]),
        }
        for name, row in rows.items()
    }
    return report.table(f"{network}, {batch} images, the time of a training step", "norm", cells)


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Measures, prints, writes train_step.json and .md; returns what the first of them holds."""
    parser = report.parser("train_step", __doc__)
    parser.add_argument("--batch", type=report.positive, default=32, help="images in a step")
    parser.add_argument("--width", type=report.positive, default=64, help="of ResNet-18's first stage")
    parser.add_argument("--rounds", type=report.positive, default=12, help="how often each is timed")
    parser.add_argument("--network", choices=NETWORKS, nargs="+", default=list(NETWORKS))
    processes.add_flag(parser, 3)
    options = parser.parse_args(argv)
    found = processes.repeated("train_step", argv, options.runs, lambda: measure(options))
    tables = [table(network, rows, options.batch) for network, rows in found.items()]
    return report.write("train_step", argv, options.out, {"figures": found}, tables)
