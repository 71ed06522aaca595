"""The passes over the data, one module per implementation; `None` means the default, "xla"."""

from types import ModuleType
from typing import Literal, get_args

from jbn.ops import xla as xla

Implementation = Literal["xla"]


def select(implementation: Implementation | None) -> ModuleType:
    """The module of an implementation; an explicit name never falls back to another."""
    if implementation not in (None, *get_args(Implementation)):
        raise ValueError(
            f"`implementation` must be None or one of {get_args(Implementation)}, "
            f"got {implementation!r}"
        )
    return xla
