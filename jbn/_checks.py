"""What a call may be given: every check of an argument, made while tracing, before any arithmetic."""

import operator
import warnings
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

Axis = int | Sequence[int]
AxisName = Hashable | Sequence[Hashable]
AxisIndexGroups = Sequence[Sequence[int]]
RunningVariance = Literal["biased", "unbiased"]


def feature_axes(axis: Axis, ndim: int) -> tuple[int, ...]:
    """The feature axes as sorted, non-negative integers."""
    axes = tuple(axis) if isinstance(axis, Iterable) else (axis,)
    try:
        axes = tuple(operator.index(a) for a in axes)
    except TypeError:
        raise TypeError(f"`axis` must be an integer or a sequence of integers, got {axis!r}") from None
    for a in axes:
        if not -ndim <= a < ndim:
            raise ValueError(
                f"`axis` names the feature axis or axes of `x` and must lie in [{-ndim}, {ndim}) for "
                f"an input of {ndim} dimensions, got {axis!r}"
            )
    canonical = tuple(sorted(a % ndim for a in axes))
    if not canonical:
        raise ValueError("`axis` must name at least one feature axis, got an empty sequence")
    if len(set(canonical)) != len(canonical):
        raise ValueError(f"`axis` must name each axis once, got {axis!r} for {ndim} dimensions")
    return canonical


def reduction_axes(features: tuple[int, ...], ndim: int) -> tuple[int, ...]:
    """The axes the statistics are taken over: all that are not feature axes."""
    return tuple(a for a in range(ndim) if a not in features)


def input_array(x: Any) -> jax.Array:
    """`x` as an array that can be normalized: integers become float32, booleans are refused."""
    x = jnp.asarray(x)
    if jnp.issubdtype(x.dtype, jnp.bool_):
        raise TypeError(
            "`x` must be numeric, got dtype bool; convert it first, e.g. x.astype('float32')"
        )
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        x = x.astype(jnp.float32)
    return x


def per_channel(name: str, value: Any, shape: tuple[int, ...]) -> None:
    """One value per channel: the shape must be that of the feature axes of `x`."""
    got = None if value is None else np.shape(value)
    if got != shape:
        raise ValueError(
            f"`{name}` must have the shape of the feature axes of `x`, {shape}, got {got}; pass the "
            f"`axis` that holds the features, or initialize with the right number of features"
        )


def params_dict(params: Any, shape: tuple[int, ...]) -> dict[str, jax.Array]:
    """`params`, which holds `scale` and `bias`, either, or neither, as floating-point arrays."""
    if not isinstance(params, Mapping):
        raise TypeError(
            f"`params` must be a mapping with 'scale' and 'bias' (either may be left out), "
            f"got {type(params).__name__}"
        )
    unknown = sorted(str(name) for name in params if name not in ("scale", "bias"))
    if unknown:
        raise ValueError(
            f"`params` may hold 'scale' and 'bias', got {unknown} besides; other libraries' names "
            f"(gamma, beta, weight, offset) must be renamed"
        )
    for name, value in params.items():
        per_channel(f"params['{name}']", value, shape)
    arrays = {name: jnp.asarray(value) for name, value in params.items()}
    return {
        name: v if jnp.issubdtype(v.dtype, jnp.inexact) else v.astype(jnp.float32)
        for name, v in arrays.items()
    }


def batch_stats_dict(
    batch_stats: Any, shape: tuple[int, ...], cumulative: bool
) -> dict[str, jax.Array]:
    """`batch_stats`, which holds `mean` and `var`, and `count` where it is cumulative, as arrays."""
    if not isinstance(batch_stats, Mapping) or not {"mean", "var"} <= set(batch_stats):
        got = sorted(batch_stats) if isinstance(batch_stats, Mapping) else type(batch_stats).__name__
        raise ValueError(
            f"`batch_stats` must be a mapping with 'mean' and 'var', as jbn.init(features) makes it, "
            f"got {got}"
        )
    if cumulative and "count" not in batch_stats:
        raise ValueError(
            "`momentum=None` is the cumulative average and needs 'count' in `batch_stats` (the number "
            "of batches seen, per channel); make it with jbn.init(features, momentum=None)"
        )
    for name in ("mean", "var", *(["count"] if cumulative else [])):
        per_channel(f"batch_stats['{name}']", batch_stats[name], shape)
    arrays = {name: jnp.asarray(value) for name, value in batch_stats.items()}
    for name in ("mean", "var"):
        dtype = arrays[name].dtype
        if not jnp.issubdtype(dtype, jnp.inexact):
            raise TypeError(
                f"`batch_stats['{name}']` must be floating-point, or every update would be truncated, "
                f"got dtype {dtype}"
            )
    return arrays


def epsilon_value(epsilon: Any) -> Any:
    """`epsilon` as a float, positive; a traced one cannot be looked at."""
    if isinstance(epsilon, Tracer):
        return epsilon if jnp.issubdtype(epsilon.dtype, jnp.inexact) else epsilon.astype(jnp.float32)
    epsilon = _number("epsilon", epsilon)
    limits = jnp.finfo(jnp.float32)
    if not float(limits.tiny) <= epsilon <= float(limits.max):
        raise ValueError(
            f"`epsilon` must be a positive finite number, got {epsilon!r}; it is added to the "
            f"variance, in float32, so that a constant channel is not divided by zero"
        )
    return epsilon


def _number(name: str, value: Any) -> float:
    try:
        if isinstance(value, str):
            raise TypeError
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"`{name}` must be a number or a scalar array, got {value!r}") from None


def momentum_value(momentum: Any) -> None:
    """`momentum` lies in [0, 1] or is None; a traced one cannot be looked at."""
    if momentum is None or isinstance(momentum, Tracer):
        return
    if not 0.0 <= _number("momentum", momentum) <= 1.0:
        raise ValueError(
            f"`momentum` must lie in [0, 1] or be None (cumulative), got {momentum!r}; it is the "
            f"weight of the OLD statistics: PyTorch's momentum m is 1 - m here"
        )


def mask_array(mask: Any, shape: tuple[int, ...]) -> jax.Array:
    """`mask` with as many dimensions as `x`, whatever it broadcasts from."""
    mask = jnp.asarray(mask)
    if jnp.issubdtype(mask.dtype, jnp.complexfloating):
        raise TypeError(f"`mask` must be boolean or real weights >= 0, got dtype {mask.dtype}")
    sizes = zip(reversed(mask.shape), reversed(shape), strict=False)
    if mask.ndim > len(shape) or not all(m in (1, n) for m, n in sizes):
        raise ValueError(
            f"`mask` must broadcast against `x`, of shape {tuple(shape)}, got shape {mask.shape}; a "
            f"mask over the batch axes needs a last axis of one for the features: mask[..., None]"
        )
    return jax.lax.expand_dims(mask, range(len(shape) - mask.ndim))


def axis_names(axis_name: Any) -> Any:
    """`axis_name` in a form that can be hashed: a list becomes a tuple; none at all is None."""
    if isinstance(axis_name, list | tuple):
        return tuple(axis_name) or None
    return axis_name


def index_groups(
    axis_index_groups: AxisIndexGroups | None, axis_name: AxisName | None
) -> tuple[tuple[int, ...], ...] | None:
    """`axis_index_groups` as nested tuples that partition the devices."""
    if axis_index_groups is None:
        return None
    if axis_name is None:
        raise ValueError(
            f"`axis_index_groups` divides the devices of a named axis and needs `axis_name`, got "
            f"axis_index_groups={axis_index_groups!r} with axis_name=None"
        )
    groups = tuple(tuple(operator.index(i) for i in group) for group in axis_index_groups)
    members = sorted(i for group in groups for i in group)
    if members != list(range(len(members))) or not all(groups):
        raise ValueError(
            f"`axis_index_groups` must hold every index of the named axis exactly once, in groups "
            f"that are not empty, got {axis_index_groups!r}"
        )
    return groups


def choice(name: str, value: Any, literal: Any) -> None:
    """`value` is one of the strings of a `Literal`."""
    if value not in get_args(literal):
        raise ValueError(f"`{name}` must be one of {get_args(literal)}, got {value!r}")


def train_flag(train: Any) -> Any:
    """`train` as a bool, or traced: a boolean scalar."""
    if isinstance(train, (bool, np.bool_)):
        return bool(train)
    if getattr(train, "shape", None) != () or getattr(train, "dtype", None) != jnp.bool_:
        raise TypeError(f"`train` must be a bool or a boolean scalar array, got {train!r}")
    return train if isinstance(train, Tracer) else bool(train)


def warn_if_single(count: int) -> None:
    """One value per channel is allowed in training and worth a word: the output is then `bias`."""
    if count == 1:
        warnings.warn(
            "batch norm in training with one value per channel: the output is `bias` and the batch "
            "variance 0, whatever `x` is; use a larger batch, `axis_name`, or train=False",
            stacklevel=4,  # the caller of batch_norm, which hands on to `call`
        )
