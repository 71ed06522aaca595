"""What the conversions share: arrays of one value per channel, checked under their own names."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jbn import _dtypes

Arrays = dict[str, np.ndarray]
Layer = tuple[Arrays, Arrays]


def per_channel(arrays: Mapping[str, Any]) -> Arrays:
    """Copies of the arrays, which must be floating-point and of one shape, in one axis."""
    copies: Arrays = {}
    for name, value in arrays.items():
        v = copies[name] = floating(name, value)
        first = next(iter(copies))
        shape = copies[first].shape
        if v.ndim != 1:
            raise ValueError(
                f"`{name}` must have one axis, that of the channels, got shape {v.shape}: is it of "
                f"another kind of layer, or of several at once?"
            )
        if v.shape != shape:
            raise ValueError(f"`{name}` must have the shape of `{first}`, {shape}, got {v.shape}")
    return copies


def floating(name: str, value: Any) -> np.ndarray:
    """A copy of an array, which must be floating-point."""
    try:
        v = np.asarray(value).copy()
    except (TypeError, ValueError, RuntimeError) as error:
        got = f"{type(value).__name__}: {error}"
        raise TypeError(
            f"`{name}` must be an array, or become one by np.asarray (a tensor of bfloat16 by "
            f"`.float()` first), got {got}"
        ) from error
    if not jnp.issubdtype(v.dtype, jnp.floating):
        raise TypeError(f"`{name}` must be a floating-point array, got dtype {v.dtype}")
    return v


def params_and_stats(arrays: Mapping[str, np.ndarray]) -> Layer:
    """The two dicts of a layer; its statistics are in float32 at least."""
    params = {name: v for name, v in arrays.items() if name in ("scale", "bias")}
    batch_stats = {n: v.astype(_dtypes.promote(v.dtype)) for n, v in arrays.items() if n not in params}
    return params, batch_stats


def layer_arrays(
    params: Mapping[str, Any], batch_stats: Mapping[str, Any], others: Sequence[str] = ()
) -> Arrays:
    """`scale`, `bias`, `mean` and `var` of a layer of jbn or Flax, which may hold `others` besides."""
    known = {"params": ("scale", "bias"), "batch_stats": ("mean", "var", *others)}
    found, labels = {}, {}
    for (argument, names), given in zip(known.items(), (params, batch_stats), strict=True):
        if not isinstance(given, Mapping) or not set(given) <= set(names):
            got = sorted(given) if isinstance(given, Mapping) else type(given).__name__
            raise ValueError(f"`{argument}` must be the mapping of one layer, of {names}, got {got}")
        for name in names:
            if name in given and name not in others:
                labels[name] = f"{argument}['{name}']"
                found[labels[name]] = given[name]
    arrays = per_channel(found)
    return {name: arrays[label] for name, label in labels.items()}


def require(arrays: Mapping[str, Any], names: Sequence[str], where: str) -> None:
    """Fails where one of the names is missing, and says what there is."""
    if not isinstance(arrays, Mapping):
        raise TypeError(f"{where} must be a mapping from names to arrays, got {type(arrays).__name__}")
    if missing := [name for name in names if name not in arrays]:
        some = sorted(map(str, arrays))[:8]
        more = ", ..." if len(arrays) > len(some) else ""
        raise ValueError(f"{where} must hold {missing}, got {', '.join(some) or 'nothing'}{more}")
