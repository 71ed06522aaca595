"""A trained model without its batch norms, which become part of the layers before them."""

from collections.abc import Mapping
from typing import Any, overload

from flax import linen as nn
from flax import nnx

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

    apply, variables, report = fold(model, variables, x, train=False)      Linen
    model, report = fold(model, x)                                         NNX
    """
    if isinstance(model, nnx.Module):
        folded = fold_nnx(model, inputs, kwargs)
    else:
        folded = fold_linen(model, inputs[0], inputs[1:], kwargs)
    if verbose:
        print(folded.report)
    return folded
