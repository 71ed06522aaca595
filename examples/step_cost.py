"""What a step of training costs: its speed, and the memory of its compiled program."""

import time
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from tqdm import tqdm

import trials
from resnet_training import Network, State

MB = 1e6


class Cost(NamedTuple):
    """The loss of each step; images per second, without the compilation; memory in MB.

    `arguments` are the parameters, the optimizer's state, the statistics and the minibatch;
    `temporaries` what the program takes besides them and its results, such as the activations kept
    for the backward pass.
    """

    losses: list[float]
    images_per_second: float
    arguments: float
    temporaries: float


def measure(
    train_step: Any,
    state: State,
    minibatches: Iterable[tuple[np.ndarray, np.ndarray]],
    bar: tqdm,
    *,
    network: Network,
    learning_rate: float,
) -> Cost:
    """Compiles the step, runs it on each of the minibatches, and takes the time.

    Args:
        train_step: a jitted (state, images, labels, *, network, learning_rate) -> (state, loss).
        state: before the first step.
        minibatches: images and labels, of one shape.
        bar: moved on by one per step.
        network, learning_rate: what the step takes.
    """
    compiled, losses, seconds, size = None, [], 0.0, 0
    for images, labels in minibatches:
        if compiled is None:
            lowered = train_step.lower(
                state, images, labels, network=network, learning_rate=learning_rate
            )
            compiled = lowered.compile()
        start = time.perf_counter()
        state, loss = compiled(state, images, labels, learning_rate=learning_rate)
        jax.block_until_ready(state)
        seconds += time.perf_counter() - start
        losses.append(float(loss))
        size += len(images)
        bar.update()
    if compiled is None:
        raise ValueError("expected at least one minibatch, got none")
    memory = compiled.memory_analysis()
    return Cost(
        losses,
        size / seconds,
        memory.argument_size_in_bytes / MB,
        memory.temp_size_in_bytes / MB,
    )


def table(costs: Mapping[str, Cost]) -> str:
    """A line for each network."""
    columns = ("images/second", "arguments (MB)", "temporaries (MB)", "first loss", "last loss")
    rows = {
        name: (
            f"{cost.images_per_second:.2f}",
            f"{cost.arguments:.0f}",
            f"{cost.temporaries:.0f}",
            f"{cost.losses[0]:.2f}",
            f"{cost.losses[-1]:.2f}",
        )
        for name, cost in costs.items()
    }
    return trials.table("", columns, rows)


def figure(costs: Mapping[str, Cost]) -> Figure:
    """The loss of each step."""
    out = Figure(figsize=(7, 4.4), dpi=110, layout="constrained")
    axes = out.subplots()
    for name, cost in costs.items():
        axes.plot(range(1, len(cost.losses) + 1), cost.losses, marker="o", markersize=4, label=name)
    axes.set_xlabel("step")
    axes.set_ylabel("training loss (cross entropy)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
    return out
