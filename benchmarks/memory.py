"""What is kept for the backward pass, what memory compiled gradients need, and how fast they are.

    python -m benchmarks memory

Stacks of conv 3x3, batch norm and activation, and ResNet-18: flax.linen's norm, jbn's, jbn's in place,
and both under `jax.checkpoint` with a policy: jax's `dots_saveable`, which keeps what matrix products
and convolutions compute, and `jbn.remat_policy`, which keeps the moments too.

- kept by JAX: the arrays between the forward and the backward pass, before XLA sees them;
- compiled: the `temp_size_in_bytes` of XLA's `memory_analysis()` of the gradient, exact and repeatable,
  with the compiler's settings as they are: `XLA_FLAGS` changes them;
- the time of a gradient, all in turn, after loss, running statistics and gradients have been compared
  with Flax's.
"""

import argparse
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen
import jax
import numpy as np
from flax import linen as nn

import jbn
from benchmarks.shared import networks, report, timing
from benchmarks.shared.adapters import linen_apply

MIB = 2**20
BASE = "flax"
NETWORKS = ("leaky_relu_stack", "relu_stack", "resnet18")
ONE_LAYER = (64, 32, 32, 32)


class Case(NamedTuple):
    """A network, and a policy for `jax.checkpoint` around all of it."""

    model: nn.Module
    policy: Callable[..., Any] | None = None

    def loss(self) -> Callable[..., Any]:
        """(params, batch_stats, images, labels) -> (loss, new batch_stats)."""
        loss = networks.loss_of(self.model)
        return loss if self.policy is None else jax.checkpoint(loss, policy=self.policy)

    def gradient(self) -> Callable[..., Any]:
        """The same arguments -> ((loss, new batch_stats), gradient of the parameters)."""
        return jax.value_and_grad(self.loss(), has_aux=True)


def cases(options: argparse.Namespace) -> dict[str, tuple[tuple[int, ...], dict[str, Case]]]:
    """By network: its images, and what is done about its norms."""
    flax, own = networks.NORMS["flax"], networks.NORMS["jbn"]
    dots, remat = jax.checkpoint_policies.dots_saveable, jbn.remat_policy
    images, channels = (options.batch, options.size, options.size), options.width
    stack = functools.partial(networks.Stack, features=(channels,) * options.layers)
    resnet = functools.partial(networks.resnet18, features=2 * channels)
    in_place = functools.partial(own, norm=jbn.inplace("leaky_relu"))
    return {
        "leaky_relu_stack": (
            (*images, channels),
            {
                BASE: Case(stack(flax, nn.leaky_relu)),
                "jbn": Case(stack(own, nn.leaky_relu)),
                "jbn, in place": Case(stack(in_place, lambda y: y)),
            },
        ),
        "relu_stack": (
            (*images, channels),
            {
                BASE: Case(stack(flax)),
                "flax, dots_saveable": Case(stack(flax), dots),
                "jbn": Case(stack(own)),
                "jbn, dots_saveable": Case(stack(own), dots),
                "jbn, remat_policy": Case(stack(own), remat),
            },
        ),
        "resnet18": (
            (*images, 3),
            {
                BASE: Case(resnet(norm=flax)),
                "flax, dots_saveable per block": Case(resnet(norm=flax, remat_policy=dots)),
                "jbn": Case(resnet(norm=own)),
                "jbn, remat_policy per block": Case(resnet(norm=own, remat_policy=remat)),
                "jbn, remat_policy": Case(resnet(norm=own), remat),
            },
        ),
    }


def residual_bytes(function: Callable[..., Any], primals: Any, *others: Any) -> int:
    """What JAX keeps of a forward pass for the backward pass, besides the arguments.

    Before XLA sees anything: it is what a compiler may improve on, on any device. What is handed
    through nested functions is listed more than once, and is one array: each content counts once.

    Args:
        function: of the primals and the others; returns a pair, whose second has no derivative.
        primals: what it is differentiated by.
        others: further arguments.
    """

    def content(tree):
        arrays = [v for v in jax.tree.leaves(tree) if isinstance(v, jax.Array)]
        return {hashlib.sha256(np.asarray(v).tobytes()).digest(): v.nbytes for v in arrays}

    @jax.jit
    def forward(primals, *others):
        return jax.vjp(lambda p: function(p, *others), primals, has_aux=True)[1]

    vjp = forward(primals, *others)
    arguments = content((primals, others))
    return sum(size for digest, size in content(vjp).items() if digest not in arguments)


def one_layer(shape: tuple[int, ...], dtype: str) -> dict[str, float]:
    """The residuals of one layer with Flax's norm and jbn's, in sizes of x."""
    x = jax.random.normal(jax.random.key(0), shape, dtype)
    params, batch_stats = jbn.init(shape[-1])
    modules = {BASE: flax.linen.BatchNorm, "jbn": jbn.linen.BatchNorm}

    def layer(module, primals, batch_stats):
        x, params = primals
        norm = module(use_running_average=False, dtype=dtype)
        # 2 * x: what the layer before has made is no argument, and counts where it is kept.
        return linen_apply(norm, 2 * x, params, batch_stats)

    kept = {
        name: residual_bytes(functools.partial(layer, module), (x, params), batch_stats)
        for name, module in modules.items()
    }
    return {name: size / x.nbytes for name, size in kept.items()}


def compiled_bytes(case: Case, images: tuple[int, ...]) -> int:
    """What the compiled gradient allocates besides its arguments and results; nothing is computed."""
    state, *data = networks.abstract(case.model, images)
    lowered = jax.jit(case.gradient()).lower(state.params, state.batch_stats, *data)
    analysis: Any = lowered.compile().memory_analysis()
    return analysis.temp_size_in_bytes


def measure(
    network: str, cases: Mapping[str, Case], images: tuple[int, ...], rounds: int, seed: int
) -> dict[str, dict[str, Any]]:
    """By case: bytes, and quartiles over the rounds of the time of a gradient by that with Flax's norm.

    Raises:
        RuntimeError: a case's loss, running statistics or gradient are not Flax's.
    """
    x, labels = networks.data(images, seed)
    wanted, timers, found = None, {}, {}
    for name, case in cases.items():
        state = networks.create_state(case.model, x[:1], seed)
        arguments = state.params, state.batch_stats, x, labels
        run = functools.partial(jax.jit(case.gradient()), *arguments)
        result = jax.device_get(run())
        wanted = result if wanted is None else wanted
        networks.require_equal(f"{network}, {name}", result, wanted)
        timers[name] = timing.of_calls(run)
        found[name] = {
            "kept by JAX": residual_bytes(case.loss(), *arguments),
            "compiled": compiled_bytes(case, images),
        }
    seconds = timing.rounds(timers, rounds)
    for name, row in found.items():
        row["ms"] = timing.milliseconds(seconds[name])
        quartiles = np.percentile(timing.ratios(seconds, name, BASE), (25, 50, 75))
        row["time by flax"] = quartiles.tolist()
    return found


def table(title: str, rows: Mapping[str, Any]) -> str:
    """A row per case, everything beside Flax's."""
    cells = {
        name: {
            **{
                f"{what}, MiB": f"{row[what] / MIB:.3g} ({row[what] / rows[BASE][what]:.2f})"
                for what in ("kept by JAX", "compiled")
            },
            "time by Flax's": report.span(row["time by flax"]),
        }
        for name, row in rows.items()
    }
    return report.table(title, "norm", cells)


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Measures, prints, writes memory.json and .md; returns what the first of them holds."""
    parser = report.parser("memory", __doc__)
    parser.add_argument("--network", choices=NETWORKS, nargs="+", default=NETWORKS)
    parser.add_argument("--batch", type=report.positive, default=64)
    parser.add_argument("--size", type=report.positive, default=32, help="height and width")
    parser.add_argument(
        "--width", type=report.positive, default=32, help="channels; ResNet-18: twice that"
    )
    parser.add_argument("--layers", type=report.positive, default=12, help="of the stacks")
    parser.add_argument("--rounds", type=report.positive, default=7, help="how often each is timed")
    options = parser.parse_args(argv)
    found = {
        network: measure(network, rows, images, options.rounds, options.seed)
        for network, (images, rows) in report.progress(cases(options).items(), "networks")
        if network in options.network
    }
    layer = {dtype: one_layer(ONE_LAYER, dtype) for dtype in ("float32", "bfloat16")}
    tables = [
        table(f"{network}, {options.batch} images, in brackets by Flax's; of times the quartiles", rows)
        for network, rows in found.items()
    ]
    shown = {dtype: {n: f"{v:.2f}" for n, v in row.items()} for dtype, row in layer.items()}
    tables.append(report.table(f"Kept of one layer, x {ONE_LAYER}, in sizes of x", "dtype", shown))
    figures = {"figures": found, "one layer": layer}
    return report.write("memory", argv, options.out, figures, tables)
