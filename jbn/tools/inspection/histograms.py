"""A picture of a model's batch norm layers: histograms of scale, means and deviations by layer."""

from collections.abc import Mapping
from typing import Any

import numpy as np

BINS = 60


def draw(arrays: Mapping[str, Mapping[str, np.ndarray]], epsilon: float, path: Any) -> None:
    """Writes a picture with a row for each layer, darker where more of its channels are.

    Args:
        arrays: "mean", "var" and perhaps "scale" of each layer, by its name.
        epsilon: of sqrt(var + epsilon), the deviation.
        path: of the file; its ending says what kind.

    Raises:
        ImportError: without matplotlib.
        ValueError: a kind of file that matplotlib does not know.
    """
    try:
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import PowerNorm
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "the picture needs matplotlib: install the extra, pip install 'jbn[examples]'"
        ) from error
    panels = {
        "scale": [a.get("scale", np.empty(0)) for a in arrays.values()],
        "mean": [a["mean"] for a in arrays.values()],
        "deviation": [np.sqrt(np.maximum(a["var"], 0) + epsilon) for a in arrays.values()],
    }
    figure = Figure(figsize=(11, 1.8 + 0.22 * len(arrays)), dpi=110, layout="constrained")
    all_axes = figure.subplots(1, len(panels), sharey=True)
    look = {"cmap": "Blues", "norm": PowerNorm(0.5, 0, 0.5)}
    for axes, (title, layers) in zip(all_axes, panels.items(), strict=True):
        layers = [np.real(v[np.isfinite(v)]).ravel() for v in layers]
        values = np.concatenate(layers)
        place = _places(values, positive=title == "deviation")
        every = place(values) if values.size else np.zeros(1)
        margin = max(0.02 * np.ptp(every), 0.05)
        edges = np.linspace(every.min() - margin, every.max() + margin, BINS + 1)
        shares = [np.histogram(place(v), edges)[0] / max(1, v.size) for v in layers]
        axes.pcolormesh(edges, np.arange(len(layers) + 1) - 0.5, np.stack(shares), **look)
        ticks = _round_numbers(edges[0], edges[-1], place)
        axes.set_xticks([place(v) for v in ticks], [f"{v:g}" for v in ticks])
        axes.set_title(title)
        axes.grid(axis="x", alpha=0.3)
    all_axes[0].set_yticks(range(len(arrays)), list(arrays))
    all_axes[0].invert_yaxis()
    colours = ScalarMappable(**look)
    figure.colorbar(colours, ax=all_axes, label="share of the channels", extend="max")
    figure.savefig(path)


def _places(values, *, positive):
    """Where a value is on the axis: at its logarithm; or, with signs, linearly where most are."""
    if positive:
        return np.log
    usual = 5 * np.median(np.abs(values)) if values.size else 0.0
    return lambda v: np.arcsinh(v / (usual or 1.0))


def _round_numbers(low, high, place):
    """Some between two places, and apart."""
    powers = 10.0 ** np.arange(15, -16, -1)
    positive = [first * power for first in (1, 5, 2, 8, 1.2) for power in powers]
    signed = positive if place is np.log else [0.0, *positive, *(-v for v in positive)]
    chosen = []
    for v in sorted(signed, key=lambda v: signed.index(abs(v))):
        if low <= place(v) <= high and all(abs(place(v) - place(c)) > (high - low) / 6 for c in chosen):
            chosen.append(v)
    return chosen
