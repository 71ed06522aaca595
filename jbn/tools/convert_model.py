"""`flax.nnx.BatchNorm` layers of a model that is there already become `jbn.nnx.BatchNorm`."""

import warnings
from typing import TypeVar

from flax import nnx

from jbn._norm import Norm, as_norm, plain
from jbn.nnx import BatchNorm
from jbn.tools.norm_layers import nnx_layer

Model = TypeVar("Model", bound=nnx.Module)


def convert_model(model: Model, norm: Norm = plain) -> Model:
    """Turns the `flax.nnx.BatchNorm` layers of an NNX model into `jbn.nnx.BatchNorm`, in place.

    The arguments that a layer was made with are kept, and so are its Variables: an optimizer that holds
    them stays valid, and what is shared stays shared. The objects themselves become the new layers,
    wherever they are referred to, in lists and dicts too. Variables that `norm` has besides are new;
    statistics that it has several of, such as one for each domain, begin with copies of the layer's.

    Only layers whose class is exactly `flax.nnx.BatchNorm` are converted, for a subclass may do
    anything besides: these are left, and a warning names them.

    Args:
        model: the model, which may be a layer itself.
        norm: the norm of all the layers, a `jbn.Norm`. Default: `jbn.plain`.

    Returns:
        `model` itself.

    Raises:
        ValueError: there is no `flax.nnx.BatchNorm` in `model`, or a layer's Variables do not fit
            `norm`. Nothing is changed then.
        TypeError: `model` is no NNX model, or `norm` no norm.

    Example:
        >>> import jbn
        >>> from flax import nnx
        >>> rngs = nnx.Rngs(0)
        >>> model = nnx.Sequential(nnx.Linear(2, 3, rngs=rngs), nnx.BatchNorm(3, rngs=rngs))
        >>> model = jbn.tools.convert_model(model, jbn.ghost(groups=2))
        >>> type(model.layers[1])
        <class 'jbn.nnx.BatchNorm'>
    """
    as_norm(norm)
    if not isinstance(model, nnx.Module):
        raise TypeError(
            f"`model` must be an nnx.Module, got {type(model).__name__}; for Linen there is "
            f"jbn.tools.converted"
        )
    layers, others = {}, {}
    for path, module in nnx.iter_modules(model):
        if isinstance(module, nnx.BatchNorm):
            found = layers if type(module) is nnx.BatchNorm else others
            found[".".join(map(str, path)) or "the model"] = module
    left = ", ".join(f"{path} ({type(module).__name__})" for path, module in others.items())
    if not layers:
        raise ValueError(
            f"`model` must hold a flax.nnx.BatchNorm, got none{left and ' but subclasses: '}{left}"
        )
    replacements = {path: nnx_layer(path, layer, norm) for path, layer in layers.items()}
    for path, layer in layers.items():
        # Not a new object: every reference to the layer would have to be found.
        object.__setattr__(layer, "__class__", BatchNorm)
        object.__setattr__(layer, "__dict__", vars(replacements[path]))
    if left:
        warnings.warn(f"subclasses of flax.nnx.BatchNorm are left as they are: {left}", stacklevel=2)
    return model
