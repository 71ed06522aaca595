"""Haiku and Equinox keep a sum, and divide it by the weight of its terms; jbn keeps the average."""

from typing import Literal

import numpy as np

from jbn import _checks

Match = Literal["inference", "training"]

# decay^counter is 0 then: the library goes on as jbn does.
FOREVER = 2**30


def weight(counter: int, decay: float | None) -> float:
    """1 - decay^counter, the weight of the terms of a sum that began at zero."""
    if decay is None or not 0 <= float(decay) < 1:
        raise ValueError(
            f"`momentum`, in Haiku `decay_rate`, must be given and lie in [0, 1) where there is a "
            f"counter, {counter}, got {decay!r}"
        )
    return 1.0 - float(decay) ** counter


def sum_and_average(
    v: np.ndarray, match: Match, counter: int | None, decay: float | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The sum, the average and the counter of a statistic that is one of the first two."""
    _checks.choice("match", match, Match)
    if counter is None:
        return v, v.copy(), np.array(FOREVER, np.int32)
    if counter < 1 or counter != int(counter):
        raise ValueError(f"`counter` must be the number of training steps, at least 1, got {counter}")
    w = weight(counter, decay)
    total, average = (v * w, v) if match == "inference" else (v, v / w)
    return total.astype(v.dtype), average.astype(v.dtype), np.array(counter, np.int32)
