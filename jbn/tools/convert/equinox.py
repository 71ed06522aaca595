"""Equinox's BatchNorm: the arrays of its fields, and what its state has for them."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jbn import _checks
from jbn.tools.convert.channels import (
    Layer,
    layer_arrays,
    params_and_stats,
    per_channel,
    require,
)
from jbn.tools.convert.debiasing import Match, sum_and_average, weight

AFFINE = {"weight": "scale", "bias": "bias"}


def from_equinox(arrays: Mapping[str, Any], *, match: Match, momentum: float | None = None) -> Layer:
    """Parameters and statistics of a batch norm of Equinox, from what its fields stand for.

        arrays = {"weight": bn.weight, "bias": bn.bias,
                  "batch_state_index": state.get(bn.batch_state_index),
                  "batch_counter": state.get(bn.batch_counter)}

    In the mode "batch" Equinox updates the mean from 0 and the variance from 1 as jbn does, but for
    inference it divides both by 1 - m^n, of its momentum m and number of steps n. So the two libraries
    need different numbers, unless n is large:

        match="training"   mean, var as they are: further steps give what Equinox's state becomes.
        match="inference"  mean, var / (1 - m^n): y is Equinox's with `train=False`. (Its
                           variance began at 1, not at 0, and is too large by m^n / (1 - m^n).)

    The mode "ema" has "ema_state_index" in place of the last two, and divides by nothing; its
    training, which normalizes by the running averages, is another: see `jbn.streaming`.

    Args:
        arrays: see above; "weight" and "bias" are left out or None for `channelwise_affine=False`.
        match: see above.
        momentum: the layer's; needed for match="inference" of the mode "batch".

    Returns:
        params: {"scale": (C,), "bias": (C,)}, what there is of them.
        batch_stats: {"mean": (C,), "var": (C,)}, float32 at least.

    Raises:
        ValueError, TypeError: an entry is missing or of another shape or kind; named in the message.

    Example:
        >>> import numpy as np, jbn
        >>> pair = np.array([0.1], "float32"), np.array([1.0], "float32")
        >>> arrays = {"batch_state_index": pair, "batch_counter": np.array(1)}
        >>> params, batch_stats = jbn.tools.from_equinox(arrays, match="inference", momentum=0.9)
        >>> print(batch_stats["mean"], batch_stats["var"])
        [1.] [10.]
    """
    _checks.choice("match", match, Match)
    require(arrays, [], "`arrays`")
    field = "ema_state_index" if "ema_state_index" in arrays else "batch_state_index"
    require(arrays, [field], "`arrays`")
    if not isinstance(pair := arrays[field], tuple | list) or len(pair) != 2:
        raise ValueError(
            f"`{field}` must be the pair of mean and variance that `state.get` has for it, got "
            f"{type(pair).__name__}"
        )
    found = {name: arrays[name] for name in AFFINE if arrays.get(name) is not None}
    found.update({f"{field}[{i}]": v for i, v in enumerate(pair)})
    names = [*(AFFINE[name] for name in found if name in AFFINE), "mean", "var"]
    checked = per_channel(found).values()
    params, batch_stats = params_and_stats(dict(zip(names, checked, strict=True)))
    if match == "inference" and field == "batch_state_index":
        require(arrays, ["batch_counter"], "`arrays`")
        steps = int(arrays["batch_counter"])
        w = weight(steps, momentum) if steps else 1.0
        batch_stats = {name: (v / w).astype(v.dtype) for name, v in batch_stats.items()}
    return params, batch_stats


def to_equinox(
    params: Mapping[str, Any],
    batch_stats: Mapping[str, Any],
    *,
    match: Match = "inference",
    counter: int | None = None,
    momentum: float | None = None,
) -> dict[str, Any]:
    """What goes into a batch norm of Equinox: the way back from `from_equinox`.

    Put them in place by `eqx.tree_at` and `state.set`. Without a `counter`, Equinox's mode "batch"
    goes on as jbn would, in inference and in training: its counter is set so high that it divides by 1.
    With one, `match` says what the statistics are, as in `from_equinox`. The mode "ema" takes the pair
    of "batch_state_index" for its `ema_state_index`, and False for `ema_first_time_index`.

    Args:
        params, batch_stats: of one layer.
        match: see above.
        counter: number of training steps that Equinox shall take these statistics to hold.
        momentum: the layer's; used with a counter alone.

    Returns:
        {"weight", "bias", "batch_state_index": (mean, var), "batch_counter"}; weight and bias are None
        where there is neither. Equinox has both or none: one that is missing is ones, or zeros.

    Raises:
        ValueError, TypeError: an argument is no layer's or not of the form above.

    Example:
        >>> import jbn
        >>> arrays = jbn.tools.to_equinox(*jbn.init(3))
        >>> arrays["batch_state_index"][1]
        array([1., 1., 1.], dtype=float32)
    """
    layer = layer_arrays(params, batch_stats)
    require(batch_stats, ["mean", "var"], "`batch_stats`")
    mean, var = (sum_and_average(layer[name], match, counter, momentum) for name in ("mean", "var"))
    weight, bias = layer.get("scale"), layer.get("bias")
    if bias is None and weight is not None:
        bias = np.zeros_like(weight)
    if weight is None and bias is not None:
        weight = np.ones_like(bias)
    return {
        "weight": weight,
        "bias": bias,
        "batch_state_index": (mean[0], var[0]),
        "batch_counter": int(mean[2]),
    }
