"""`flax.nnx.BatchNorm` layers of a model that is there already become `jbn.nnx.BatchNorm`."""

import inspect
import warnings
from typing import TypeVar

import jax.numpy as jnp
from flax import nnx

from jbn._norm import Norm, as_norm, plain
from jbn.nnx import BatchNorm

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
    replacements = {path: _replacement(path, layer, norm) for path, layer in layers.items()}
    for path, layer in layers.items():
        # Not a new object: every reference to the layer would have to be found.
        object.__setattr__(layer, "__class__", BatchNorm)
        object.__setattr__(layer, "__dict__", vars(replacements[path]))
    if left:
        warnings.warn(f"subclasses of flax.nnx.BatchNorm are left as they are: {left}", stacklevel=2)
    return model


def _replacement(path, layer, norm):
    """A layer of jbn with the arguments and the Variables of one of Flax."""
    arguments = {
        name: getattr(layer, name)
        for name in inspect.signature(nnx.BatchNorm.__init__).parameters
        if hasattr(layer, name)
    }
    new = BatchNorm(**arguments, norm=norm, rngs=nnx.Rngs(0))
    of_one_layer = (layer.num_features,)
    for name in ("scale", "bias", "mean", "var"):
        variable, fresh = getattr(layer, name), getattr(new, name, None)
        if variable is None:
            continue
        if fresh is not None and fresh.shape == of_one_layer:
            setattr(new, name, variable)
        elif isinstance(fresh, nnx.BatchStat) and fresh.shape[1:] == variable.shape == of_one_layer:
            setattr(new, name, variable.replace(jnp.broadcast_to(variable[...], fresh.shape)))
        else:
            raise ValueError(
                f"`norm` must have a '{name}' like that of {path}, of shape {variable.shape}, got "
                f"{'none' if fresh is None else fresh.shape} from {norm!r}"
            )
    return new
