"""How far is y from the exact result? jbn and its peers against float64, forward and backward.

Every library normalizes the same float32 input in training mode with epsilon 1e-5, scale 1 and bias 0;
the reference is float64 arithmetic on that same input. Not timed.
"""

import argparse
import datetime
import functools
import importlib.metadata
import itertools
import json
import os
import platform
import re
import shlex
import sys
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen
import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table

import jbn

HERE = Path(__file__).parent
EPSILON = 1e-5
INPUTS = {  # (mean, deviation); without deviation y is to be exactly the bias, 0
    "N(0, 1)": (0.0, 1.0),
    "N(2, 1)": (2.0, 1.0),
    "N(7, 1)": (7.0, 1.0),
    "N(1e2, 1)": (1e2, 1.0),
    "N(1e3, 1)": (1e3, 1.0),
    "N(1e4, 1)": (1e4, 1.0),
    "N(1e5, 1)": (1e5, 1.0),
    "N(1e3, 1e-2)": (1e3, 1e-2),
    "N(1e-3, 1e-6)": (1e-3, 1e-6),
    "constant 100.1": (100.1, 0.0),
    "constant 1.234567e7": (1.234567e7, 0.0),
}
RATIOS = np.logspace(0, 7, 15)
Y_TARGET, GRADIENT_TARGET = 1e-6, 1e-5
GRADIENTS = ("dx", "dscale", "dbias")
JBN = "jbn, worst way"
PACKAGES = ("jax", "jaxlib", "flax", "numpy", "dm-haiku", "equinox", "keras", "torch")


def reference(x: np.ndarray, dy: np.ndarray) -> tuple[np.ndarray, ...]:
    """(y, dx, dscale, dbias) in float64: y = (x - mean) / sqrt(var + epsilon), and its gradients."""
    x, dy = x.astype(np.float64), dy.astype(np.float64)
    axes = tuple(range(x.ndim - 1))
    d = x - x.mean(axes)
    std = np.sqrt(np.mean(d**2, axes) + EPSILON)
    y = d / std
    dx = (dy - dy.mean(axes) - y * np.mean(dy * y, axes)) / std
    return y, dx, np.sum(dy * y, axes), dy.sum(axes)


def y_error(y: Any, r: np.ndarray) -> float:
    """max |y - r| / max(1, |r|); NaN where y holds a NaN."""
    return float(np.max(np.abs(np.asarray(y, np.float64) - r) / np.maximum(1, np.abs(r))))


def gradient_error(g: Any, r: np.ndarray) -> float:
    """max |g - r| / max |r|; NaN where g holds a NaN."""
    return float(np.max(np.abs(np.asarray(g, np.float64) - r)) / np.max(np.abs(r)))


class Way(NamedTuple):
    """One way to call a library: two functions of the arrays that `arguments` makes."""

    forward: Callable[..., Any]  # (x, scale, bias, mean, var, mask) -> y
    backward: Callable[..., Any]  # (dy, x, scale, bias, mean, var, mask) -> (dx, dscale, dbias)
    learnt: float = 0.0
    masked: bool = False


def arguments(x: np.ndarray, learnt: float, masked: bool) -> tuple:
    """x, scale, bias, running mean and variance, mask.

    jbn sums about the running mean, and no result may depend on it. `learnt` is how far the running
    statistics have come from their first values, at 0, to those of x, at 1.
    """
    axes = tuple(range(x.ndim - 1))
    mean, var = (f(x.astype(np.float64), axes).astype(np.float32) for f in (np.mean, np.var))
    mask = np.ones((*x.shape[:-1], 1), bool) if masked else None
    arrays = x, np.ones_like(mean), np.zeros_like(mean), learnt * mean, 1 + learnt * (var - 1), mask
    return jax.tree.map(jnp.asarray, arrays)


def jax_way(apply: Callable[..., Any], jit: bool = True) -> Way:
    """Both functions, from the forward one in JAX."""

    def backward(dy, x, scale, bias, *rest):
        return jax.vjp(lambda *args: apply(*args, *rest), x, scale, bias)[1](dy)

    return Way(jax.jit(apply), jax.jit(backward)) if jit else Way(apply, backward)


def linen_apply(layer: flax.linen.Module, x, scale, bias, mean, var, mask):
    """A batch norm of Linen's, Flax's or jbn's."""
    variables = {
        "params": {"scale": scale, "bias": bias},
        "batch_stats": {"mean": mean, "var": var},
    }
    return layer.apply(variables, x, mask=mask, mutable=["batch_stats"])[0]


def jbn_functional(x, scale, bias, mean, var, mask):
    """The functional API."""
    params, batch_stats = {"scale": scale, "bias": bias}, {"mean": mean, "var": var}
    return jbn.batch_norm(x, params, batch_stats, train=True, epsilon=EPSILON, mask=mask)[0]


def jbn_nnx(x, scale, bias, mean, var, mask):
    """The NNX layer."""
    layer = jbn.nnx.BatchNorm(x.shape[-1], epsilon=EPSILON, rngs=flax.nnx.Rngs(0))
    for name, value in {"scale": scale, "bias": bias, "mean": mean, "var": var}.items():
        getattr(layer, name)[...] = value
    return layer(x, mask=mask)


def every_jbn(_: Sequence[int]) -> list[Way]:
    """The three APIs, with and without jit and mask, at three ages of the running statistics."""
    layer = jbn.linen.BatchNorm(use_running_average=False, epsilon=EPSILON)
    applies = jbn_functional, functools.partial(linen_apply, layer), jbn_nnx
    ways = [jax_way(apply, jit) for apply in applies for jit in (True, False)]
    ages = itertools.product((0.0, 0.5, 1.0), (False, True))
    return [way._replace(learnt=learnt, masked=masked) for learnt, masked in ages for way in ways]


def flax_linen(_: Sequence[int], fast: bool) -> list[Way]:
    """`flax.linen.BatchNorm`."""
    layer = flax.linen.BatchNorm(False, epsilon=EPSILON, use_fast_variance=fast)
    return [jax_way(functools.partial(linen_apply, layer))]


def haiku(shape: Sequence[int]) -> list[Way]:
    """`haiku.BatchNorm`."""
    import haiku as hk

    layer = hk.transform_with_state(lambda x: hk.BatchNorm(True, True, 0.99, eps=EPSILON)(x, True))
    params, state = layer.init(jax.random.key(0), jnp.zeros(shape))

    def apply(x, scale, bias, *_):
        given = {"scale": scale, "offset": bias}
        own = {
            module: {name: given[name].reshape(value.shape) for name, value in values.items()}
            for module, values in params.items()
        }
        return layer.apply(own, state, None, x)[0]

    return [jax_way(apply)]


def equinox(shape: Sequence[int]) -> list[Way]:
    """`equinox.nn.BatchNorm`: one sample with its channels first, under vmap."""
    import equinox as eqx

    layer = functools.partial(eqx.nn.BatchNorm, axis_name="batch", eps=EPSILON, mode="batch")
    bn, state = eqx.nn.make_with_state(layer)(shape[-1])

    def apply(x, scale, bias, *_):
        own = eqx.tree_at(lambda b: (b.weight, b.bias), bn, (scale, bias))
        call = jax.vmap(own, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
        return jnp.moveaxis(call(jnp.moveaxis(x, -1, 1), state)[0], 1, -1)

    return [jax_way(apply)]


def keras(shape: Sequence[int]) -> list[Way]:
    """`keras.layers.BatchNormalization` on the JAX backend, which is chosen at its first import."""
    os.environ["KERAS_BACKEND"] = "jax"
    import keras

    layer = keras.layers.BatchNormalization(epsilon=EPSILON)
    layer.build(tuple(shape))

    def apply(x, scale, bias, mean, var, _):
        return layer.stateless_call([scale, bias], [mean, var], x, training=True)[0]

    return [jax_way(apply)]


def torch(_: Sequence[int]) -> list[Way]:
    """`torch.nn.functional.batch_norm` on the CPU, on a contiguous array with the channels first."""
    import torch

    def graph(arrays):
        leaves = [torch.tensor(np.asarray(a), requires_grad=True) for a in arrays[:3]]
        x = leaves[0].movedim(-1, 1).contiguous()
        y = torch.nn.functional.batch_norm(x, None, None, *leaves[1:], training=True, eps=EPSILON)
        return leaves, y.movedim(1, -1)

    def backward(dy, *arrays):
        leaves, y = graph(arrays)
        return torch.autograd.grad(y, leaves, torch.tensor(dy))

    return [Way(lambda *arrays: graph(arrays)[1].detach(), backward)]


LIBRARIES: dict[str, Callable[[Sequence[int]], list[Way]]] = {
    "jbn": lambda shape: every_jbn(shape)[:1],
    JBN: every_jbn,
    "flax": functools.partial(flax_linen, fast=True),
    "flax, slow var": functools.partial(flax_linen, fast=False),
    "haiku": haiku,
    "equinox": equinox,
    "keras": keras,
    "torch": torch,
}


def errors(ways: list[Way], x: np.ndarray, dy: np.ndarray, forward_only: bool) -> dict[str, float]:
    """The error of y, and of the three gradients, in the worst of `ways`."""
    r, *gradients = reference(x, dy)
    found = []
    for way in ways:
        args = arguments(x, way.learnt, way.masked)
        found.append([y_error(way.forward(*args), r)])
        if not forward_only:
            pairs = zip(way.backward(dy, *args), gradients, strict=True)
            found[-1] += [gradient_error(*pair) for pair in pairs]
    worst = np.max(found, axis=0).tolist()  # NaN if any is
    return dict(zip(("y", *GRADIENTS), worst, strict=False))


def table(title: str, rows: dict[str, dict[str, float]], target: Callable[[str], float]) -> Table:
    """One row per input, one column per library; what misses the target is red."""
    out = Table("input", *next(iter(rows.values())), "target of jbn", title=title, title_justify="left")
    for name, row in rows.items():
        limit = target(name)
        cells = (f"{v:.1e}" if v <= limit else f"[red]{v:.1e}" for v in row.values())
        out.add_row(name, *cells, f"{limit:g}")
    return out


def picture(sweep: dict[str, list[float]], title: str, path: Path) -> None:
    """Error of y against mean / deviation: a line per library, and a cross at the top for a NaN."""
    figure = Figure(figsize=(8.5, 5), layout="constrained")
    ax = figure.add_subplot(xscale="log", yscale="log", title=title)
    for (name, values), marker in zip(sweep.items(), itertools.cycle("o^sDvPX"), strict=False):
        # Flax and Haiku often agree to the digit: thick below, thin above, hollow markers.
        width = {JBN: 3.0, "flax": 4.0}.get(name, 1.3)
        (line,) = ax.plot(RATIOS, values, marker=marker, mfc="none", linewidth=width, label=name)
        nans = RATIOS[np.isnan(values)]
        if nans.size:
            top, color = np.full(nans.shape, 0.97), line.get_color()
            ax.plot(nans, top, "x", c=color, transform=ax.get_xaxis_transform(), label=f"{name}: NaN")
    ax.axhline(Y_TARGET, color="black", linestyle="--", label="target of jbn")
    ax.set(xlabel="mean / standard deviation of x", ylabel="error of y: max |y - r| / max(1, |r|)")
    ax.grid(alpha=0.3)
    figure.legend(loc="outside right upper")
    figure.savefig(path, dpi=110)


def environment() -> dict[str, Any]:
    """What the figures may depend on. jbn is the checkout that this file lies in."""
    info = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", info.read_text() if info.exists() else "")
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    installed = {d.name: d.version for d in importlib.metadata.distributions() if d.name in PACKAGES}
    return {
        "machine": {
            "platform": f"{platform.system()} {platform.machine()}",
            "processors": os.cpu_count(),
            "cpu": model[1] if model else platform.processor(),
            "jax device": jax.devices()[0].device_kind,
        },
        "versions": {"python": platform.python_version(), "jbn": project["version"], **installed},
    }


def judge(
    inputs: dict[str, dict[str, dict[str, float]]], sweep: dict[str, list[float]]
) -> dict[str, Any]:
    """jbn's targets, its worst figure for each, and whether that meets it; a NaN never does."""
    y = {name: row[JBN]["y"] for name, row in inputs.items()}
    found = {
        "y, every input": (list(y.values()), Y_TARGET),
        "y, constant inputs": ([y[name] for name in y if not INPUTS[name][1]], 0.0),
        "y, sweep": (sweep[JBN], Y_TARGET),
        "gradients": (
            [r[JBN][g] for r in inputs.values() for g in r[JBN] if g != "y"],
            GRADIENT_TARGET,
        ),
    }
    worst = {name: (float(np.max(values)), target) for name, (values, target) in found.items()}
    return {name: {"worst": w, "target": t, "met": w <= t} for name, (w, t) in worst.items()}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures, prints, writes numerics.json and numerics.png; returns what the first of them holds."""
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(prog="python -m benchmarks numerics", description=__doc__)
    parser.add_argument("--shape", type=int, nargs="+", default=[64, 8, 8, 32], help="channels last")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE / "results", help="a folder")
    options = parser.parse_args(argv)
    console = Console()
    if not console.is_terminal:
        console = Console(width=150)  # a table folded at 80 columns in a log is unreadable

    libraries, skipped = {}, {}
    for name, make in LIBRARIES.items():
        try:
            libraries[name] = make(options.shape)
        except ImportError as error:
            skipped[name] = str(error)

    def measure(mean: float, deviation: float, names: Sequence[str], forward_only: bool):
        # The same noise for all inputs, so that only their means and deviations differ.
        rng = np.random.default_rng(options.seed)
        x, dy = (rng.standard_normal(options.shape).astype(np.float32) for _ in range(2))
        x = (mean + deviation * x.astype(np.float64)).astype(np.float32)
        return {name: errors(libraries[name], x, dy, forward_only) for name in names}

    bar = functools.partial(track, console=console, transient=True)
    inputs = {
        name: measure(mean, deviation, list(libraries), forward_only=deviation == 0)
        for name, (mean, deviation) in bar(INPUTS.items(), "inputs")
    }
    lines = [name for name in libraries if name != "jbn"]
    points = [measure(ratio, 1.0, lines, forward_only=True) for ratio in bar(RATIOS, "sweep")]
    sweep = {name: [point[name]["y"] for point in points] for name in lines}
    targets = judge(inputs, sweep)

    y_rows = {name: {k: v["y"] for k, v in row.items()} for name, row in inputs.items()}
    gradient_rows = {
        f"{name}: {g}": {k: v[g] for k, v in inputs[name].items()}
        for name, (_, deviation) in INPUTS.items()
        if deviation
        for g in GRADIENTS
    }
    y_title = f"y of shape {tuple(options.shape)}: max |y - r| / max(1, |r|), r the float64 reference"
    console.print(table(y_title, y_rows, lambda name: Y_TARGET if INPUTS[name][1] else 0.0))
    console.print(table("gradients: max |g - r| / max |r|", gradient_rows, lambda _: GRADIENT_TARGET))
    for name, why in skipped.items():
        console.print(f"{name} skipped: {why}")
    for name, result in targets.items():
        verdict = "met" if result["met"] else "[red]NOT MET"
        console.print(f"{name}: {result['worst']:.1e}, target {result['target']:g}: {verdict}")

    results = {
        "command": shlex.join(["python", "-m", "benchmarks", "numerics", *argv]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **environment(),
        "shape": options.shape,
        "seed": options.seed,
        "inputs": inputs,
        "sweep": {"mean / deviation": RATIOS.tolist(), **sweep},
        "skipped": skipped,
        "targets": targets,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    # JSON has no NaN: it is written as a string.
    strict = json.loads(json.dumps(results), parse_constant=str)
    (options.out / "numerics.json").write_text(json.dumps(strict, indent=1) + "\n")
    title = f"training mode, float32 input of shape {tuple(options.shape)}"
    picture(sweep, title, options.out / "numerics.png")
    return results


if __name__ == "__main__":
    main()
