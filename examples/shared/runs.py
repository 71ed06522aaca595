"""A training run: the loop over the minibatches, and the record of it."""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from .data import Digits, minibatches


class Run(NamedTuple):
    """One training run; the lists have one value per epoch."""

    test_accuracy: list[float]
    train_loss: list[float]
    seconds: list[float]

    @property
    def seconds_per_epoch(self) -> float:
        """The median, without the first epoch, which compiles, where there are others."""
        return statistics.median(self.seconds[1:] or self.seconds)


def record(
    state: Any,
    train_step: Callable[[Any, np.ndarray, np.ndarray], tuple[Any, Any]],
    predict: Callable[[Any, np.ndarray], Any],
    digits: Digits,
    args: argparse.Namespace,
    bar: tqdm,
    *,
    seed: int,
    epochs: int | None = None,
    batch_size: int | None = None,
) -> tuple[Any, Run]:
    """Trains and takes notes.

    The loop over the minibatches is Python's: on a CPU, XLA runs a convolution inside a compiled loop
    (`lax.scan`) many times slower than outside one.

    Args:
        state: whatever `train_step` carries on.
        train_step: (state, images, labels) -> (state, loss).
        predict: (state, images) -> logits.
        digits, args: from `data.start`.
        bar: moved on by one per epoch.
        seed: of the order of the images.
        epochs, batch_size: of this run, where they are not those of `args`.

    Returns:
        The final state, and the run.
    """
    run = Run([], [], [])
    images, labels = digits.train_images, digits.train_labels
    settings = batch_size or args.batch_size, epochs or args.epochs, seed
    for batches in minibatches(len(images), *settings):
        start = time.perf_counter()
        losses = []
        for batch in batches:
            state, loss = train_step(state, images[batch], labels[batch])
            losses.append(loss)
        # Reading the losses waits for the device, so the clock comes after it.
        run.train_loss.append(float(np.mean(jax.device_get(losses))))
        run.seconds.append(time.perf_counter() - start)
        run.test_accuracy.append(accuracy(predict, state, digits))
        bar.set_postfix_str(f"test accuracy {run.test_accuracy[-1]:.1%}")
        bar.update()
    return state, run


def accuracy(predict: Callable[[Any, np.ndarray], Any], state: Any, digits: Digits) -> float:
    """Share of the test images whose largest logit is their label's.

    In pieces of a thousand: all of MNIST's test images at once take gigabytes in a small network.
    """
    pieces = np.array_split(digits.test_images, math.ceil(len(digits.test_images) / 1000))
    predicted = np.concatenate([np.argmax(predict(state, piece), axis=-1) for piece in pieces])
    return float(np.mean(predicted == digits.test_labels))
