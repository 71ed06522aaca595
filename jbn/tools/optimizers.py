"""What an optimizer has to know of batch norm's parameters: which do not decay, which are frozen."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx

from jbn.tools.norm_variables import AFFINE, Path, as_tree, is_variable, names, norm_layers, params_path


def decay_mask(variables: Any, *, decay_bias: bool = False) -> Any:
    """Which parameters decay: all but the scale and bias of batch norm.

    Batch norm makes the function that a network computes independent of the size of the weights before
    it; decaying its own scale and bias takes expressiveness instead. Made for `optax.adamw(mask=...)`,
    `optax.add_decayed_weights(mask=...)` and `optax.masked`. A layer is a batch norm if it has running
    statistics, "mean" and "var", whatever its name; layer norm's scale and bias decay.

    Args:
        variables: a model with its statistics: Linen's variables, {"params": ..., "batch_stats": ...};
            an NNX module, or its `nnx.state`. They may be traced or abstract.
        decay_bias: whether batch norm's biases do decay, so that the scales alone do not.

    Returns:
        Booleans in a tree like `variables["params"]`, or one for each variable in a state like
        `nnx.state(model, nnx.Param)`.

    Raises:
        ValueError: there are no parameters or no batch norm in `variables`.

    Example:
        >>> import jax, jax.numpy as jnp, jbn
        >>> layer = jbn.linen.BatchNorm(use_running_average=False)
        >>> variables = layer.init(jax.random.key(0), jnp.ones((2, 3)))
        >>> jbn.tools.decay_mask(variables, decay_bias=True)
        {'bias': True, 'scale': False}

    References:
        He et al. (2019), "Bag of Tricks for Image Classification with Convolutional Neural Networks",
        arXiv:1812.01187, section 3.1.
    """
    without = AFFINE[:1] if decay_bias else AFFINE
    return _of_params(variables, lambda in_norm, name: not (in_norm and name in without))


def freeze(variables: Any) -> Any:
    """Labels for an optimizer that leaves the parameters of batch norm as they are.

    For `optax.partition`, and for `optax.masked` once compared with one of the labels:

        optax.partition({"trainable": optax.adam(1e-3), "frozen": optax.set_to_zero()}, labels)

    The running statistics are no parameters, and no optimizer sees them: `jbn.frozen` and evaluation
    mode keep those.

    Args:
        variables: as in `jbn.tools.decay_mask`.

    Returns:
        "frozen" for the parameters of batch norm and "trainable" for all others, in a tree as
        `jbn.tools.decay_mask` returns it.

    Raises:
        ValueError: there are no parameters or no batch norm in `variables`.

    Example:
        >>> import jbn
        >>> from flax import nnx
        >>> rngs = nnx.Rngs(0)
        >>> model = nnx.List([nnx.Linear(2, 3, rngs=rngs), jbn.nnx.BatchNorm(3, rngs=rngs)])
        >>> labels = nnx.to_pure_dict(jbn.tools.freeze(model))
        >>> labels[0], labels[1]
        ({'bias': 'trainable', 'kernel': 'trainable'}, {'bias': 'frozen', 'scale': 'frozen'})
    """
    return _of_params(variables, lambda in_norm, _: "frozen" if in_norm else "trainable")


def _of_params(variables: Any, value: Callable[[bool, str], Any]) -> Any:
    """A tree like the parameters', of `value(whether it is a batch norm's, its name)` for each."""
    tree = as_tree(variables)
    if not isinstance(tree, nnx.State) and not (isinstance(tree, Mapping) and "params" in tree):
        raise ValueError(
            "`variables` must be Linen's, {'params': ..., 'batch_stats': ...}, an NNX module or its "
            f"state, got {sorted(tree) if isinstance(tree, Mapping) else type(tree).__name__}"
        )
    norms: set[Path] = {params_path(layer) for layer in norm_layers(tree)}
    if not norms:
        raise ValueError(
            "`variables` must have a batch norm, got none with a 'mean' and a 'var': hand over the "
            "statistics too, not the parameters alone"
        )

    def of(key_path, _):
        *layer, name = names(key_path)
        return value(tuple(layer) in norms, name)

    if isinstance(tree, nnx.State):
        params: Any = nnx.filter_state(tree, nnx.Param)
    else:
        params = {"params": tree["params"]}
    if not jax.tree.leaves(params):
        raise ValueError("`variables` must have parameters, got none")
    # One value for each variable: `nnx.Optimizer` shows optax variables at first and arrays later.
    values = jax.tree.map_with_path(of, params, is_leaf=is_variable)
    return values if isinstance(tree, nnx.State) else values["params"]
