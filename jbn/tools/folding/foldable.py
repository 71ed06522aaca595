"""The layers and batch norms of Flax that can be folded, whether of Linen or of NNX."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

import jbn.linen
import jbn.nnx
from jbn._norm import Norm
from jbn._typing import Array
from jbn.tools.folding.dataflow import tag
from jbn.tools.folding.folded_kernels import fold_into_previous
from jbn.variants.by_moments import ByMoments
from jbn.variants.frozen import Frozen

# Of these very classes: what derives from one may do something else.
GENERAL = (nn.DenseGeneral, nnx.LinearGeneral)
CONV_TRANSPOSE = (nn.ConvTranspose, nnx.ConvTranspose)
LAYERS = (nn.Dense, nnx.Linear, nn.Conv, nnx.Conv, *CONV_TRANSPOSE, *GENERAL)
NORMS = (jbn.linen.BatchNorm, jbn.nnx.BatchNorm, nn.BatchNorm, nnx.BatchNorm)


def tagged_call(
    module: Any,
    path: str,
    variables: Mapping[str, Any],
    call: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Any:
    """What a layer or norm returns, with tags on its variables, input and output.

    The input of a norm that normalizes by the batch has another tag, "training".
    """
    for name, value in variables.items():
        tag(value, name, path)
    training = isinstance(module, NORMS) and not _in_inference(module, args, kwargs)
    role = "training" if training else "in"
    if args:
        args = (tag(args[0], role, path), *args[1:])
    else:
        # Without any it is the layer's own error that says so.
        kwargs = {n: tag(v, role, path) if n in ("x", "inputs") else v for n, v in kwargs.items()}
    return tag(call(*args, **kwargs), "out", path)


def require_inference(norm: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Fails where a norm that has been folded is called to normalize by the batch."""
    if not _in_inference(norm, args, kwargs):
        raise ValueError(
            "`use_running_average` of a batch norm that has been folded must be True, as it was for "
            "jbn.tools.fold: a folded model is for inference; train the one it was made from"
        )


def _in_inference(norm, args, kwargs):
    given = args[1] if len(args) > 1 else kwargs.get("use_running_average")
    given = norm.use_running_average if given is None else given
    return (isinstance(given, (bool, np.bool_)) and bool(given)) or isinstance(
        getattr(norm, "norm", None), Frozen
    )


def is_affine(norm: Norm) -> bool:
    """Whether a norm is that of plain batch norm in inference, an affine map by `mean` and `var`.

    It is if it is plain, derives from `ByMoments` and leaves inference to it (ghost, renorm, streaming
    do), or is the `frozen` of such a norm.
    """
    if isinstance(norm, Frozen):
        return is_affine(norm.norm)
    in_inference = getattr(type(norm), "in_inference", None)
    return type(norm) is Norm or in_inference is ByMoments.in_inference


def features(layer: Any) -> tuple[int, ...]:
    """The sizes of the last axes of a layer's output: one, or those of a general dense layer."""
    sizes = layer.features if isinstance(layer, nn.Module) else layer.out_features
    return tuple(sizes) if isinstance(sizes, Iterable) else (sizes,)


def folded(
    layer: Any,
    norm: Any,
    kernel: Array,
    bias: Array | None,
    params: Mapping[str, Array],
    batch_stats: Mapping[str, Array],
) -> tuple[Array, Array]:
    """Kernel and bias of a layer that does what the norm behind it did besides."""
    shape = features(layer)

    def per_feature(v):
        return jnp.broadcast_to(v, shape).ravel()

    new_kernel, new_bias = fold_into_previous(
        kernel.reshape(-1, math.prod(shape)) if type(layer) in GENERAL else kernel,
        None if bias is None else bias.ravel(),
        {name: per_feature(v) for name, v in params.items()},
        {name: per_feature(batch_stats[name]) for name in ("mean", "var")},
        epsilon=norm.epsilon,
        layout="flax_transposed" if getattr(layer, "transpose_kernel", False) else "flax",
    )
    return new_kernel.reshape(kernel.shape), new_bias.reshape(shape)
