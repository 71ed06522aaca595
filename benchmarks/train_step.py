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
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from matplotlib.figure import Figure

from benchmarks.shared import networks, processes, report, timing

BASE = "no norm"
NETWORKS = {"ResNet-18": (32, 32, 3), "small CNN": (8, 8, 1)}  # and their images


def models(network: str, width: int) -> dict[str, nn.Module]:
    """The network with each norm."""
    if network == "small CNN":
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
    """By network and norm: milliseconds per step, and its time by that without a norm and with Flax's."""
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
            "ms per step": report.span(row["ms"], ".3g"),
            "by that without a norm": report.span(row["by no norm"], ".3f"),
            "by that with Flax's": report.span(row["by flax"], ".3f"),
        }
        for name, row in rows.items()
    }
    return report.table(f"{network}, {batch} images, the time of a training step", "norm", cells)


def picture(figures: Mapping[str, Any], path: Path) -> None:
    """Milliseconds per step by norm, a panel for each network."""
    figure = Figure(figsize=(4.6 * len(figures), 2.4), dpi=110, layout="constrained")
    panels = figure.subplots(1, len(figures), squeeze=False)[0]
    for axes, (network, rows) in zip(panels, figures.items(), strict=True):
        values = {name: float(np.median(row["ms"])) for name, row in rows.items()}
        report.bars(axes, values, {name: report.span(row["ms"], ".3g") for name, row in rows.items()})
        axes.set(title=network, xlabel="milliseconds per training step")
    figure.savefig(path)


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Measures, prints, writes train_step.json, .md and .png; returns what the first of them holds."""
    parser = report.parser("train_step", __doc__)
    parser.add_argument("--batch", type=report.positive, default=32, help="images in a step")
    parser.add_argument("--width", type=report.positive, default=64, help="of ResNet-18's first stage")
    parser.add_argument("--rounds", type=report.positive, default=12, help="how often each is timed")
    parser.add_argument("--network", choices=NETWORKS, nargs="+", default=list(NETWORKS))
    processes.add_flag(parser, 3)
    options = parser.parse_args(argv)
    found = processes.repeated("train_step", argv, options.runs, lambda: measure(options))
    tables = [table(network, rows, options.batch) for network, rows in found.items()]
    results = report.write("train_step", argv, options.out, {"figures": found}, tables)
    picture(found, options.out / "train_step.png")
    return results
