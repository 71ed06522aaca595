"""A trained model without its batch norms, which become part of the layers before them."""

from collections.abc import Mapping
from typing import Any, overload

from flax import linen as nn
from flax import nnx

from jbn import _checks
from jbn.tools.folding.folded_linen import FoldedLinen, fold_linen
from jbn.tools.folding.folded_nnx import FoldedNNX, fold_nnx


@overload
def fold(
    model: nn.Module, variables: Mapping[str, Any], /, *inputs: Any, verbose: bool = True, **kwargs: Any
) -> FoldedLinen: ...
@overload
def fold(model: nnx.Module, /, *inputs: Any, verbose: bool = True, **kwargs: Any) -> FoldedNNX: ...
def fold(model: Any, /, *inputs: Any, verbose: bool = True, **kwargs: Any) -> Any:
    """A model for inference in which each batch norm is part of the layer before it.

        gain   = scale * rsqrt(var + epsilon)
        kernel = kernel * gain
        bias   = (bias - mean) * gain + bias of the norm

    The model is traced, not run, to see what it does with the output of each layer. A norm is folded
    where its input is what a Dense, DenseGeneral, Conv or ConvTranspose returned (NNX: Linear,
    LinearGeneral, Conv, ConvTranspose), nothing else takes that, both are called once, and the kernel
    is the model's own and used nowhere else. Norms are the layers of jbn and of Flax; those of jbn with
    a `norm` that is plain in inference: `jbn.plain`, `jbn.ghost`, `jbn.renorm`, `jbn.streaming` and
    `jbn.frozen` of these. The others are left as they are, and the report says why.

    The new model does the calls that were traced, in inference alone; a call by another method, or
    another way through the model, may need norms that are gone. Outputs agree to the rounding of
    float32, of the order of 1e-7 for each layer. Where kernels are in half precision, the folded ones
    are rounded to it again, and a layer of `dtype=bfloat16` now rounds behind the norm, not before it;
    the output of a folded norm keeps the dtype that it had for `inputs`.

    Args:
        model: a module of flax.linen or of flax.nnx.
        variables: for Linen alone: "params" and "batch_stats".
        inputs: positional arguments of the call of the model: arrays, or `jax.ShapeDtypeStruct`, as
            their values do not matter, and what is no array.
        verbose: print the report. Default True.
        kwargs: keywords of the call: of `model.apply` for Linen (`train=False`), of `model` for NNX.

    Returns:
        Linen: (apply, variables, report), `apply` being what `model.apply` was, for these variables
        alone: others are refused. NNX: (model, report), a copy in evaluation mode. Named tuples. The
        report has `folded`, the pairs of norm and layer, and `left`, a dict with the reasons.

    Raises:
        TypeError: `model` is no Flax module, or Linen's variables are missing.

    Example:
        >>> import jax, jax.numpy as jnp, jbn
        >>> from flax import linen as nn
        >>> norm = jbn.linen.BatchNorm(use_running_average=True)
        >>> model, x = nn.Sequential([nn.Dense(3), norm, nn.relu, norm.copy()]), jnp.ones((2, 4))
        >>> variables = model.init(jax.random.key(0), x)
        >>> apply, folded, report = jbn.tools.fold(model, variables, x)
        folded 1 of 2 batch norms
          layers_1 into layers_0
          layers_3 is left: `max` is before it, not a layer
        >>> print(jnp.allclose(apply(folded, x), model.apply(variables, x), atol=1e-6))
        True
    """
    if isinstance(model, nnx.Module):
        folded = fold_nnx(model, inputs, kwargs)
    elif not isinstance(model, nn.Module):
        raise TypeError(
            f"`model` must be a module of flax.linen or flax.nnx, got {_checks.described(model)}; for "
            f"kernels there is jbn.tools.fold_into_previous"
        )
    elif not inputs or not isinstance(inputs[0], Mapping):
        raise TypeError(
            "`variables` of a Linen model, with 'params' and 'batch_stats', must follow it, got "
            f"{type(inputs[0]).__name__ if inputs else 'nothing'}"
        )
    elif missing := {"params", "batch_stats"} - set(inputs[0]):
        raise TypeError(f"`variables` must hold {sorted(missing)} too, got {sorted(inputs[0])}")
    else:
        folded = fold_linen(model, inputs[0], inputs[1:], kwargs)
    if verbose:
        print(folded.report)
    return folded
