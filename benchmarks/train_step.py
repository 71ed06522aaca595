"""What does batch norm add to a whole step of training? ResNet-18 and a small CNN, by norm.

    python -m benchmarks train_step

The same network without a norm (the identity), with flax.linen's and with jbn's. A step is the loss,
its gradients and SGD with momentum, one jitted program that donates its state; the loop over the steps
is Python's, the norms in turn. Before a time is taken, loss, gradients and new running statistics of
jbn must be flax's. Prints, per network, milliseconds and the overhead (t_norm - t_none) / t_none.
"""

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from matplotlib.figure import Figure

import jbn
from benchmarks import networks, report, timing
from examples.resnet_model import resnet18

TARGET = 0.5
BASE = "no norm"
# What a round's time is the mean of, so that it is long against the clock and the scheduler.
STEPS = {"ResNet-18": 1, "small CNN": 20}
IMAGES = {"ResNet-18": (32, 32, 3), "small CNN": (8, 8, 1)}


def models(network: str, width: int, remat: bool) -> dict[str, nn.Module]:
    """The network with each norm; with `remat` also ResNet-18 whose blocks keep what jbn needs."""
    if network == "small CNN":
        return {name: networks.SmallCNN(norm) for name, norm in networks.NORMS.items()}
    made: dict[str, nn.Module]
    made = {name: resnet18(norm=norm, features=width) for name, norm in networks.NORMS.items()}
    if remat:
        make = functools.partial(resnet18, features=width, remat_policy=jbn.remat_policy)
        made["jbn, remat"] = make(norm=networks.NORMS["jbn"])
    return made


def prepare(made: dict[str, nn.Module], images: Any, labels: Any, seed: int) -> tuple[dict, dict]:
    """Jitted steps and the states after the first, which is compared: all norms with flax's."""
    steps, states, losses = {}, {}, {}
    for name, model in made.items():
        steps[name] = jax.jit(networks.step_of(model), donate_argnums=0)
        state = networks.create_state(model, images[:1], seed)
        states[name], losses[name] = jax.block_until_ready(steps[name](state, images, labels))
    for name in made:
        if name not in (BASE, "flax"):
            # The momentum of SGD's state is, after one step, the gradient.
            actual, wanted = (
                ((losses[n], states[n].batch_stats), states[n].opt_state) for n in (name, "flax")
            )
            networks.require_equal(name, actual, wanted)
    return steps, states


def measure(
    made: dict[str, nn.Module],
    shape: tuple[int, ...],
    count: int,
    rounds: int,
    seed: int,
) -> dict[str, dict[str, float]]:
    """By norm: median and quartiles of the milliseconds per step, and the median overhead.

    Args:
        made: the network with each norm.
        shape: of the images.
        count: steps of each norm in a round.
        rounds: how often all are timed, in turn.
        seed: of the data and the parameters.
    """
    images, labels = networks.data(shape, seed)
    steps, states = prepare(made, images, labels, seed)

    def run(name):
        for _ in range(count):
            states[name], _ = jax.block_until_ready(steps[name](states[name], images, labels))

    timers = {name: functools.partial(timing.elapsed, run, name) for name in made}
    times = timing.rounds(timers, rounds)
    return {
        name: {
            **timing.summary([t / count for t in values]),
            "overhead": timing.ratio(times, name, BASE) - 1,
        }
        for name, values in times.items()
    }


def judge(figures: dict[str, dict[str, dict[str, float]]]) -> dict[str, Any]:
    """jbn's overhead as a part of flax's; where flax has none there is nothing to be a part of."""
    found = {}
    for network, rows in figures.items():
        flax = rows["flax"]["overhead"]
        part = rows["jbn"]["overhead"] / flax if flax > 0 else np.nan
        found[f"{network}: overhead of jbn / overhead of flax"] = report.verdict([part], TARGET)
    return found


def picture(figures: dict[str, dict[str, dict[str, float]]], path: Path) -> None:
    """Milliseconds per step by norm, a panel for each network."""
    figure = Figure(figsize=(4.6 * len(figures), 3.2), dpi=110, layout="constrained")
    panels = figure.subplots(1, len(figures), squeeze=False)[0]
    for axes, (network, rows) in zip(panels, figures.items(), strict=True):
        values = {name: row["ms"] for name, row in rows.items()}
        texts = {
            name: f"{row['ms']:.3g}" + ("" if name == BASE else f" ({row['overhead']:+.0%})")
            for name, row in rows.items()
        }
        report.bars(axes, values, texts)
        axes.set(title=network, xlabel="milliseconds per training step")
    figure.savefig(path)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures, prints, writes train_step.json and train_step.png; returns what the first holds."""
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = report.parser("train_step", __doc__)
    parser.add_argument("--batch", type=int, default=32, help="images in a step")
    parser.add_argument("--width", type=int, default=64, help="channels of ResNet-18's first stage")
    parser.add_argument("--rounds", type=int, default=20, help="how often each is timed")
    parser.add_argument("--network", choices=list(STEPS), help="default: both")
    parser.add_argument("--remat", action="store_true", help="ResNet-18 with jbn.remat_policy as well")
    parser.add_argument("--quick", action="store_true", help="tiny networks: to see that it runs")
    options = parser.parse_args(argv)
    if options.quick:
        options.batch, options.width, options.rounds = 4, 4, 2
    console = report.console()
    figures = {}
    for network in [options.network] if options.network else STEPS:
        made = models(network, options.width, options.remat)
        shape = (options.batch, *IMAGES[network])
        count = 1 if options.quick else STEPS[network]
        with console.status(network):
            rows = measure(made, shape, count, options.rounds, options.seed)
        figures[network] = rows
        cells = {
            name: {
                "ms per step": f"{row['ms']:.4g}",
                "quartiles": f"{row['low_ms']:.4g} to {row['high_ms']:.4g}",
                "overhead": "" if name == BASE else f"{row['overhead']:+.1%}",
            }
            for name, row in rows.items()
        }
        size = f", width {options.width}" if network != "small CNN" else ""
        console.print(report.table(f"{network}, images {shape}{size}", "norm", cells))
    targets = judge(figures)
    report.print_verdicts(console, targets)
    settings = {"batch": options.batch, "width": options.width, "rounds": options.rounds}
    results = {"settings": settings, "figures": figures, "targets": targets}
    results = report.write("train_step", argv, options.out, results)
    picture(figures, options.out / "train_step.png")
    return results


if __name__ == "__main__":
    main()
