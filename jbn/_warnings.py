"""The one warning: a single value per channel in training."""

import contextlib
import contextvars
import sys
import warnings

_LIBRARIES = ("jbn", "flax", "jax", "contextlib")

_quiet = contextvars.ContextVar("quiet", default=False)


@contextlib.contextmanager
def initializing():
    """Within it one value per channel is nothing to warn about: shapes are all that matters."""
    token = _quiet.set(True)
    try:
        yield
    finally:
        _quiet.reset(token)


def is_initializing() -> bool:
    """Whether the call is within `initializing`."""
    return _quiet.get()


def warn_if_single(count: int) -> None:
    """One value per channel is allowed in training and worth a word: the output is then `bias`."""
    if count == 1 and not is_initializing():
        warnings.warn(
            "batch norm in training with one value per channel: the output is `bias` and the batch "
            "variance 0, whatever `x` is; use a larger batch, `axis_name`, or train=False",
            stacklevel=_callers_level(),
        )


def _callers_level():
    """The stack level of the first caller that is no part of the libraries between it and us."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals["__name__"].partition(".")[0] in _LIBRARIES:
        level, frame = level + 1, frame.f_back
    return level
