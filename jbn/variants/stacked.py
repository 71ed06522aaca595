"""A set of statistics for each of several situations, as rows of the same arrays."""

from collections.abc import Mapping

import jax.numpy as jnp
from jax.typing import ArrayLike

from jbn._typing import Array


def repeated(arrays: Mapping[str, Array], n: int) -> dict[str, Array]:
    """The same n times, along a first axis."""
    return {name: jnp.repeat(v[None], n, 0) for name, v in arrays.items()}


def rows(arrays: Mapping[str, ArrayLike], index: Array | int) -> dict[str, Array]:
    """Each array's row at an index, or at several; NaN where there is none."""
    outside = {"mode": "fill", "wrap_negative_indices": False}
    return {name: jnp.asarray(v).at[index].get(**outside) for name, v in arrays.items()}


def with_row(
    arrays: Mapping[str, ArrayLike], index: Array | int, row: Mapping[str, Array]
) -> dict[str, Array]:
    """The arrays with another row at an index, in the dtype of that; the same where there is none."""
    outside = {"mode": "drop", "wrap_negative_indices": False}
    wide = {name: jnp.asarray(arrays[name]).astype(v.dtype) for name, v in row.items()}
    return {name: wide[name].at[index].set(v, **outside) for name, v in row.items()}


def check_rows(name: str, arrays: Mapping[str, ArrayLike], n: int, of: str) -> None:
    """Fails where arrays have not as many rows as there are situations."""
    for key, v in arrays.items():
        if jnp.shape(v)[:1] != (n,):
            raise ValueError(
                f"`{name}['{key}']` must have a first axis of {n}, for {n} {of}, got shape "
                f"{jnp.shape(v)}; make it with the `init` of this norm"
            )
