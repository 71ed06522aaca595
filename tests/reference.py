"""The oracle: batch norm in float64 NumPy, written from the paper's equations, not from the package."""

import jax
import jax.numpy as jnp
import numpy as np


def _wide(x):
    x = np.asarray(x)
    return x.astype(np.complex128 if np.iscomplexobj(x) else np.float64)


def _setup(x, axis, mask):
    x = _wide(x)
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    features = {a % x.ndim for a in axes}
    reduced = tuple(a for a in range(x.ndim) if a not in features)
    weights = (
        np.ones(x.shape) if mask is None else np.broadcast_to(np.asarray(mask, np.float64), x.shape)
    )
    return x, weights, reduced


def _broadcast(value, reduced):
    return np.expand_dims(_wide(value), reduced)


def moments(x, axis=-1, mask=None):
    """Weighted mean, biased variance and count; 0, 0, 0 for a channel without samples."""
    x, weights, reduced = _setup(x, axis, mask)
    x = np.where(weights > 0, x, 0)
    count = weights.sum(reduced)
    n = np.where(count > 0, count, 1)
    with np.errstate(invalid="ignore"):
        mean = (weights * x).sum(reduced) / n
        var = (weights * np.abs(x - _broadcast(mean, reduced)) ** 2).sum(reduced) / n
    return mean, var, count


def normalize(x, mean, var, params, axis=-1, epsilon=1e-5):
    """(x - mean) / sqrt(var + epsilon) * scale + bias."""
    x, _, reduced = _setup(x, axis, None)
    with np.errstate(invalid="ignore"):
        y = (x - _broadcast(mean, reduced)) / np.sqrt(_broadcast(var, reduced) + epsilon)
    if "scale" in params:
        y = y * _broadcast(params["scale"], reduced)
    if "bias" in params:
        y = y + _broadcast(params["bias"], reduced)
    return y


def batch_norm(x, params, axis=-1, epsilon=1e-5, mask=None):
    """Training: normalize with the batch's own moments."""
    mean, var, _ = moments(x, axis, mask)
    return normalize(x, mean, var, params, axis, epsilon)


def update_running(batch_stats, x, axis=-1, mask=None, momentum=0.99, running_variance="biased"):
    """Running statistics after one more batch."""
    mean, var, count = moments(x, axis, mask)
    if running_variance == "unbiased":
        var = np.where(count > 1, var * count / np.where(count > 1, count - 1, 1), var)
    old = {name: _wide(value) for name, value in batch_stats.items()}
    keep = (count == 0) | ~np.isfinite(mean) | ~np.isfinite(var)
    new = {}
    if momentum is None:
        new["count"] = old["count"] + ~keep
        momentum = 1 - 1 / np.maximum(new["count"], 1)
    for name, value in (("mean", mean), ("var", var)):
        new[name] = np.where(keep, old[name], momentum * old[name] + (1 - momentum) * value)
    return new


def backward(dy, x, params, axis=-1, epsilon=1e-5, mask=None):
    """Cotangents of x and params by the chain rule through mean, var and y, one step at a time."""
    x, weights, reduced = _setup(x, axis, mask)
    dy = np.asarray(dy).astype(np.float64)
    mean, var, count = moments(x, axis, mask)
    mean, var, n = (_broadcast(v, reduced) for v in (mean, var, np.where(count > 0, count, 1)))
    inv = (var + epsilon) ** -0.5
    x_hat = (x - mean) * inv
    scale = 1.0
    if "scale" in params:
        scale = _broadcast(params["scale"], reduced)
    d_x_hat = dy * scale
    d_var = (d_x_hat * (x - mean)).sum(reduced, keepdims=True) * -0.5 * inv**3
    d_mean = -(d_x_hat * inv).sum(reduced, keepdims=True)
    dx = d_x_hat * inv + weights * (d_var * 2 * (x - mean) / n + d_mean / n)
    grads = {"scale": (dy * x_hat).sum(reduced), "bias": dy.sum(reduced)}
    return dx, {name: grads[name] for name in params}


def plain_batch_norm(x, params, axis=-1, epsilon=1e-5, mask=None):
    """A plain jnp composition, for JAX's own derivatives of every order to be compared with."""
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    reduced = tuple(a for a in range(x.ndim) if a not in {f % x.ndim for f in axes})
    weights = jnp.ones(x.shape, x.dtype)
    if mask is not None:
        weights = jnp.broadcast_to(mask.astype(x.dtype), x.shape)
    n = jnp.sum(weights, reduced, keepdims=True)
    mean = jnp.sum(weights * x, reduced, keepdims=True) / n
    var = jnp.sum(weights * (x - mean) ** 2, reduced, keepdims=True) / n
    y = (x - mean) * jax.lax.rsqrt(var + epsilon)
    if "scale" in params:
        y = y * jax.lax.expand_dims(params["scale"], reduced)
    if "bias" in params:
        y = y + jax.lax.expand_dims(params["bias"], reduced)
    return y
