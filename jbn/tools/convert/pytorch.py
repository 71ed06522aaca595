"""PyTorch's BatchNorm1d, 2d, 3d and SyncBatchNorm: the entries of a state dict."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jbn.tools.convert.channels import (
    Arrays,
    Layer,
    layer_arrays,
    params_and_stats,
    per_channel,
    require,
)

NAMES = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
COUNT = "num_batches_tracked"


def from_torch(state_dict: Mapping[str, Any], prefix: str = "", *, cumulative: bool = False) -> Layer:
    """Parameters and statistics of a batch norm of PyTorch.

        weight, bias -> scale, bias           running_mean, running_var -> mean, var

    To go on training as there: PyTorch's momentum m is `momentum=1 - m` here (0.9 for its default
    0.1) and its running variance the unbiased one, `running_variance="unbiased"`. Its channels are axis
    1, those of Flax's convolutions the last.

    Args:
        state_dict: of a layer or of a whole model; NumPy arrays, or tensors in the CPU's memory.
        prefix: the layer's name in the model, such as "layer1.0.bn1"; "" for the layer's own dict.
        cumulative: add `count`, PyTorch's `num_batches_tracked`, for `momentum=None`, which means the
            same in both. Default False.

    Returns:
        params: {"scale": (C,), "bias": (C,)}, what there is of them (`affine=False` has neither).
        batch_stats: {"mean": (C,), "var": (C,)}, float32 at least, and "count"; {} for
            `track_running_stats=False`: such a layer normalizes each batch by itself, in evaluation
            too, which is `train=True` here, with the statistics of `jbn.init`.

    Raises:
        ValueError, TypeError: an entry is missing or of another shape or kind; named in the message.

    Example:
        >>> import numpy as np, jbn
        >>> state_dict = {"bn.weight": np.ones(2), "bn.bias": np.zeros(2), "bn.running_var": np.ones(2),
        ...               "bn.running_mean": np.array([0.5, 0.25]), "bn.num_batches_tracked": 7}
        >>> params, batch_stats = jbn.tools.from_torch(state_dict, "bn")
        >>> print(batch_stats["mean"])
        [0.5  0.25]
    """
    require(state_dict, [], "`state_dict`")
    prefix = _dotted(prefix)
    found = {name: state_dict[prefix + name] for name in NAMES if prefix + name in state_dict}
    if not found:
        require(state_dict, [prefix + "running_mean", prefix + "weight"], "`state_dict`")
    if {"running_mean", "running_var"} & set(found) or cumulative:
        needed = ["running_mean", "running_var", *([COUNT] if cumulative else [])]
        require(state_dict, [prefix + name for name in needed], "`state_dict`")
    arrays = per_channel({prefix + name: v for name, v in found.items()})
    params, batch_stats = params_and_stats(
        {NAMES[name.removeprefix(prefix)]: v for name, v in arrays.items()}
    )
    if cumulative:
        count = int(state_dict[prefix + COUNT])
        batch_stats["count"] = np.full(batch_stats["mean"].shape, count, np.int32)
    return params, batch_stats


def to_torch(params: Mapping[str, Any], batch_stats: Mapping[str, Any], prefix: str = "") -> Arrays:
    """Entries of a state dict of PyTorch: the way back from `from_torch`, whose names it has.

    Args:
        params, batch_stats: of one layer. Batch statistics that are empty are left out.
        prefix: the layer's name in the model.

    Returns:
        A dict of NumPy arrays, for `torch.from_numpy`. `num_batches_tracked`, which PyTorch looks at
        for `momentum=None` alone, is `count`, or 0 where there is none.

    Raises:
        ValueError, TypeError: an argument is no layer's, or `count` differs between channels.

    Example:
        >>> import jbn
        >>> sorted(jbn.tools.to_torch(*jbn.init(2), "bn"))[:3]
        ['bn.bias', 'bn.num_batches_tracked', 'bn.running_mean']
    """
    arrays = layer_arrays(params, batch_stats, others=("count",))
    entries = {theirs: arrays[ours] for theirs, ours in NAMES.items() if ours in arrays}
    if batch_stats:
        require(batch_stats, ["mean", "var"], "`batch_stats`")
        counts = np.unique(np.asarray(batch_stats.get("count", 0)))
        if counts.size > 1:
            raise ValueError(
                f"`batch_stats['count']` must be one number for PyTorch, got {counts[0]} to "
                f"{counts[-1]}: some channels had batches without samples or that were not finite"
            )
        entries[COUNT] = np.array(counts[0], np.int64)
    return {_dotted(prefix) + name: v for name, v in entries.items()}


def _dotted(prefix):
    return f"{prefix}." if prefix and not prefix.endswith(".") else prefix
