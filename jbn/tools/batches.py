"""Data as batches: what can be iterated, how often, and how far it is."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx

T = TypeVar("T")


def variables_and_batches(model: Any, given: tuple[Any, ...]) -> tuple[list[Any], Any]:
    """The arguments behind the model: of Linen its variables and the batches, of NNX the batches."""
    if len(given) != (1 if isinstance(model, nnx.Module) else 2):
        raise TypeError(
            f"a Linen module takes `variables` and `batches` besides, an NNX module `batches`, got "
            f"{len(given)} arguments besides {type(model).__name__}"
        )
    for variables in given[:-1]:
        if not isinstance(variables, Mapping):
            raise TypeError(
                f"`variables` must be Linen's, with 'params' and 'batch_stats', got "
                f"{type(variables).__name__}"
            )
    return list(given[:-1]), given[-1]


def check_batches(name: str, batches: Any, several: str | None = None) -> None:
    """Fails where there are no batches to iterate, or where `several` passes need more than one."""
    if hasattr(batches, "shape") or isinstance(batches, Mapping) or not isinstance(batches, Iterable):
        raise TypeError(
            f"`{name}` must be a list of batches, or what else is iterated batch by batch, got "
            f"{type(batches).__name__}"
        )
    if several and iter(batches) is batches:
        raise TypeError(
            f"{several} iterates over `{name}` several times, got {type(batches).__name__}, which can "
            f"be iterated once: make it a list"
        )


def check_batch(batch: Any) -> None:
    """Fails where a batch holds something that JAX takes for no array."""
    for leaf in jax.tree.leaves(batch):
        if not _is_array(leaf):
            raise TypeError(
                f"a batch must hold arrays of JAX or NumPy, got {type(leaf).__name__}: convert it, and "
                f"leave out what is none, as in [jnp.asarray(images) for images, names in loader]"
            )


def _is_array(leaf):
    if isinstance(leaf, (np.ndarray, np.generic)):
        return leaf.dtype.kind not in "OSU"
    return isinstance(leaf, (jax.Array, bool, int, float, complex)) or hasattr(leaf, "__jax_array__")


def shown(items: Iterable[T], progress: bool, description: str) -> Iterable[T]:
    """The same, with a bar by tqdm."""
    if not progress:
        return items
    try:
        from tqdm import tqdm
    except ImportError:
        raise ImportError("`progress` needs tqdm: pip install tqdm, or leave it out") from None
    return tqdm(items, desc=description)
