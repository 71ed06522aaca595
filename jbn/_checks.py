"""What a call may be given: every check of an argument, made while tracing, before any arithmetic."""

import operator
import reprlib
from collections.abc import Iterable, Mapping
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jbn._typing import Array, AxisName, Groups


def described(value: Any) -> str:
    """A value in an error: an array by its shape and dtype, anything long by its beginning."""
    if isinstance(value, (jax.Array, np.ndarray)):
        return f"an array of shape {value.shape} and dtype {value.dtype}"
    return reprlib.repr(value)


def number_of_features(features: Any) -> tuple[int, ...]:
    """The sizes of the feature axes, from one or several."""
    sizes: Any = (features,)
    if isinstance(features, Iterable) and not isinstance(features, str):
        sizes = features
    try:
        shape = tuple(operator.index(n) for n in sizes)
    except TypeError:
        raise TypeError(
            f"`features` must be an integer or a sequence of integers, got {described(features)}"
        ) from None
    if any(n < 0 for n in shape):
        raise ValueError(f"`features` must not be negative, got {described(features)}")
    return shape


def feature_axes(axis: Any, ndim: int) -> tuple[int, ...]:
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


def positive_integer(name: str, value: Any) -> None:
    """Fails where a setting is none."""
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or value < 1:
        raise ValueError(f"`{name}` must be a positive integer, got {value!r}")


def array(name: str, value: Any, kind: Any = jnp.number) -> Array:
    """An array of numbers, or of another kind of dtype."""
    try:
        v = value if isinstance(value, jax.Array) else jnp.asarray(value)
        right = jnp.issubdtype(v.dtype, kind)
    except (TypeError, ValueError):
        v, right = None, False
    if v is None or not right:
        got = repr(value) if v is None or v.ndim == 0 else f"dtype {v.dtype}"
        raise TypeError(
            f"`{name}` must be an array of numbers, got {got}; convert it first, e.g. with "
            f"jnp.asarray(..., 'float32')"
        )
    return v


def input_array(x: Any) -> Array:
    """`x` as an array that can be normalized: of rank 1 or more; integers become float32."""
    x = array("x", x)
    if x.ndim == 0:
        raise ValueError("`x` must have at least one axis, that of the features, got a scalar")
    return x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(jnp.float32)


def per_channel(name: str, value: Any, shape: tuple[int, ...] | None) -> Array:
    """One value per channel: the shape must be that of the feature axes of `x`, where that is known."""
    v = array(name, value)
    if shape is not None and v.shape != shape:
        raise ValueError(
            f"`{name}` must have the shape of the feature axes of `x`, {shape}, got {v.shape}; pass "
            f"the `axis` that holds the features, or initialize with the right number of features"
        )
    return v


def params_dict(params: Any, x: Array, shape: tuple[int, ...]) -> dict[str, Array]:
    """`params`, which holds `scale` and `bias`, either, or neither, as floating-point arrays."""
    if not isinstance(params, Mapping):
        pair = "; jbn.init returns them and the statistics" if isinstance(params, tuple) else ""
        raise TypeError(
            f"`params` must be a mapping with 'scale' and 'bias' (either may be left out), "
            f"got {type(params).__name__}{pair}"
        )
    unknown = sorted(str(name) for name in params if name not in ("scale", "bias"))
    if unknown:
        hint = "other libraries' names (gamma, beta, weight, offset) must be renamed"
        if "params" in unknown:
            hint = "of the variables of a module pass those of the layer, such as variables['params']"
        elif {"mean", "var"} & set(unknown):
            hint = "the running statistics are `batch_stats`, the argument after it"
        raise ValueError(f"`params` may hold 'scale' and 'bias', got {unknown} besides; {hint}")
    return {name: _parameter(f"params['{name}']", v, x, shape) for name, v in params.items()}


def _parameter(name, value, x, shape):
    v = array(name, value)
    broadcast = v.ndim == x.ndim and all(m in (1, n) for m, n in zip(v.shape, x.shape, strict=True))
    if v.shape != shape and not broadcast:
        raise ValueError(
            f"`{name}` must have the shape of the feature axes of `x`, {shape}, got {v.shape}; pass "
            f"the `axis` that holds the features, initialize with the right number of features, or "
            f"give it as many dimensions as `x` and let it broadcast against {x.shape}"
        )
    real_where_x_is(name, v, x)
    return v if jnp.issubdtype(v.dtype, jnp.inexact) else v.astype(jnp.float32)


def real_where_x_is(name: str, v: Array, x: Array) -> None:
    """No complex parameter or statistic of a real input."""
    if jnp.iscomplexobj(v) and not jnp.iscomplexobj(x):
        raise TypeError(f"`{name}` must be real where `x` is, got dtype {v.dtype} for {x.dtype}")


def batch_stats_dict(
    batch_stats: Any, shape: tuple[int, ...] | None, cumulative: bool
) -> dict[str, Array]:
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
    arrays = {name: array(f"batch_stats['{name}']", v) for name, v in batch_stats.items()}
    for name in ("mean", "var", *(["count"] if cumulative else [])):
        per_channel(f"batch_stats['{name}']", arrays[name], shape)
    for name in ("mean", "var"):
        dtype = arrays[name].dtype
        if not jnp.issubdtype(dtype, jnp.inexact):
            raise TypeError(
                f"`batch_stats['{name}']` must be floating-point, or every update would be truncated, "
                f"got dtype {dtype}"
            )
    return arrays


def moments_arrays(moments: Any, shape: tuple[int, ...] | None, required: tuple[str, ...]) -> Any:
    """`moments`, whose fields are arrays of the features' shape; those not required may be None."""
    if not all(hasattr(moments, name) for name in ("mean", "var", "count", "remainder")):
        raise TypeError(
            f"`moments` must be a jbn.Moments, from jbn.moments or made as jbn.Moments(mean, var), got "
            f"{type(moments).__name__}"
        )
    arrays = {}
    for name in ("mean", "var", "count", "remainder"):
        value = getattr(moments, name)
        if value is None and name in required:
            raise ValueError(f"`moments.{name}` is needed here, got None; take it from jbn.moments")
        shape = jnp.shape(value) if shape is None and value is not None else shape
        arrays[name] = None if value is None else per_channel(f"moments.{name}", value, shape)
    return type(moments)(**arrays)


def _number(name: str, value: Any) -> float:
    try:
        if isinstance(value, str):
            raise TypeError
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"`{name}` must be a number or a scalar array, got {value!r}") from None


def _traced_number(name: str, value: Array) -> Array:
    if value.shape != () or not jnp.issubdtype(value.dtype, jnp.number):
        raise TypeError(
            f"`{name}` must be a scalar where it is traced, got shape {value.shape} and dtype "
            f"{value.dtype}"
        )
    return value if jnp.issubdtype(value.dtype, jnp.inexact) else value.astype(jnp.float32)


def epsilon_value(epsilon: Any) -> Any:
    """`epsilon` as a float, positive; a traced one cannot be looked at."""
    if isinstance(epsilon, Tracer):
        return _traced_number("epsilon", epsilon)
    epsilon = _number("epsilon", epsilon)
    limits = jnp.finfo(jnp.float32)
    if not float(limits.tiny) <= epsilon <= float(limits.max):
        raise ValueError(
            f"`epsilon` must be a positive finite number, got {epsilon!r}; it is added to the "
            f"variance, in float32, so that a constant channel is not divided by zero"
        )
    return epsilon


def momentum_value(momentum: Any) -> Any:
    """`momentum` lies in [0, 1] or is None; a traced one cannot be looked at."""
    if momentum is None:
        return None
    if isinstance(momentum, Tracer):
        return _traced_number("momentum", momentum)
    if not 0.0 <= _number("momentum", momentum) <= 1.0:
        raise ValueError(
            f"`momentum` must lie in [0, 1] or be None (cumulative), got {momentum!r}; it is the "
            f"weight of the OLD statistics: PyTorch's momentum m is 1 - m here"
        )
    return momentum


def axis_names(axis_name: Any) -> AxisName | None:
    """`axis_name` in a form that can be hashed: a list becomes a tuple; none at all is None."""
    if isinstance(axis_name, list | tuple):
        return tuple(axis_name) or None
    return axis_name


def index_groups(axis_index_groups: Any, axis_name: AxisName | None) -> Groups | None:
    """`axis_index_groups` as nested tuples that partition the devices."""
    if axis_index_groups is None:
        return None
    if axis_name is None:
        raise ValueError(
            f"`axis_index_groups` divides the devices of a named axis and needs `axis_name`, got "
            f"axis_index_groups={axis_index_groups!r} with axis_name=None"
        )
    try:
        groups = tuple(tuple(operator.index(i) for i in group) for group in axis_index_groups)
    except TypeError:
        raise TypeError(
            f"`axis_index_groups` must be a sequence of sequences of device indices, such as "
            f"[[0, 1], [2, 3]], got {axis_index_groups!r}"
        ) from None
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


def flag(name: str, value: Any) -> Any:
    """`value` as a bool, or traced: a boolean scalar."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if getattr(value, "shape", None) != () or getattr(value, "dtype", None) != jnp.bool_:
        raise TypeError(f"`{name}` must be a bool or a boolean scalar array, got {described(value)}")
    return value if isinstance(value, Tracer) else bool(value)


def negated(value: Any) -> Any:
    """Not a `flag`."""
    return not value if isinstance(value, bool) else jnp.logical_not(value)
