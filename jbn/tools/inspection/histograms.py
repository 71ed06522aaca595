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
    images = [_panel(axes, *panel) for axes, panel in zip(all_axes, panels.items(), strict=True)]
    all_axes[0].set_yticks(range(len(arrays)), list(arrays))
    all_axes[0].invert_yaxis()
    figure.colorbar(images[0], ax=all_axes, label="share of the layer's channels", extend="max")
    figure.savefig(path)


def _panel(axes, title, layers):
    """A row for each layer, on an axis that all of them share."""
    layers = [np.real(v[np.isfinite(v)]).ravel() for v in layers]
    logarithmic = title == "deviation"
    edges = _edges(np.concatenate(layers), np.geomspace if logarithmic else np.linspace)
    shares = np.stack([np.histogram(v, edges)[0] / max(1, v.size) for v in layers])
    axes.set(title=title, xscale="log" if logarithmic else "linear")
    axes.grid(axis="x", alpha=0.3)
    rows = np.arange(len(layers) + 1) - 0.5
    look = {"cmap": "Blues", "vmin": -0.1, "vmax": 0.5}
    return axes.pcolormesh(edges, rows, np.ma.masked_equal(shares, 0), **look)


def _edges(values, spaced):
    """Of the bins, which hold all values, and some space to both sides."""
    low, high = (values.min(), values.max()) if values.size else (1.0, 1.0)
    if spaced is np.geomspace:
        return np.geomspace(low / 1.2, high * 1.2, BINS + 1)
    margin = 0.05 * (high - low) or 0.5
    return np.linspace(low - margin, high + margin, BINS + 1)
