"""Norms of norms: which go together is said when they are made."""

from collections.abc import Iterator

from jbn._norm import Norm, as_norm, keywords


def check_inner(outer: str, norm: Norm, *own: str) -> None:
    """Fails where `norm` is none, or takes a keyword that is the outer norm's own."""
    taken = keywords(as_norm(norm))
    if twice := [name for name in own if name in taken]:
        raise ValueError(
            f"`norm` of jbn.{outer} must not take {' and '.join(f'`{name}`' for name in twice)}, which "
            f"jbn.{outer} takes itself, got {norm!r}"
        )


def chain(norm: Norm | None) -> Iterator[Norm]:
    """A norm, the one that it changes, the one that this changes, and so on."""
    while norm is not None:
        yield norm
        norm = getattr(norm, "norm", None)


def check_one_set(outer: str, norm: Norm) -> None:
    """Fails where there are several scales and biases, for an outer norm that gives or shapes one."""
    if not all(getattr(inner, "share_params", True) for inner in chain(norm)):
        raise ValueError(
            f"`norm` of jbn.{outer} must have one scale and bias, got {norm!r}; let its domains share "
            f"their parameters"
        )
