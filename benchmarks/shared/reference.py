"""The exact result: batch norm in float64 NumPy, forward and backward, and how far from it one is."""

from typing import Any

import numpy as np

EPSILON = 1e-5


def reference(
    x: np.ndarray,
    dy: np.ndarray,
    scale: Any = 1.0,
    bias: Any = 0.0,
    mask: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Training mode over all axes but the last, in float64.

        y = (x - mean) / sqrt(var + epsilon) * scale + bias

    Args:
        x, dy: (..., C), the input and the cotangent of y.
        scale, bias: (C,).
        mask: (..., 1), the samples that count; at least one.

    Returns:
        y, its gradients dx, dscale and dbias, and the mean and the biased variance.
    """
    x, dy, scale, bias = (np.asarray(v, np.float64) for v in (x, dy, scale, bias))
    axes = tuple(range(x.ndim - 1))
    w = np.ones((*x.shape[:-1], 1)) if mask is None else mask.astype(np.float64)
    n = w.sum()
    mean = (w * x).sum(axes) / n
    d = x - mean
    var = (w * d**2).sum(axes) / n
    std = np.sqrt(var + EPSILON)
    x_hat = d / std
    dscale, dbias = (dy * x_hat).sum(axes), dy.sum(axes)
    # A sample outside the mask is normalized like the rest; it only does not move the statistics.
    dx = scale / std * (dy - w * (dbias + x_hat * dscale) / n)
    y = x_hat * scale + bias
    return {"y": y, "dx": dx, "dscale": dscale, "dbias": dbias, "mean": mean, "var": var}


def error(a: Any, r: np.ndarray) -> float:
    """max |a - r| / max(1, |r|); NaN where `a` holds a NaN."""
    return float(np.max(np.abs(np.asarray(a, np.float64) - r) / np.maximum(1, np.abs(r))))


def gradient_error(g: Any, r: np.ndarray) -> float:
    """max |g - r| / max |r|; NaN where g holds a NaN."""
    return float(np.max(np.abs(np.asarray(g, np.float64) - r)) / np.max(np.abs(r)))
