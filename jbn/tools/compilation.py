"""When a model is traced anew, and when it is not."""

import contextlib
import functools
import types
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import jax
from flax import linen as nn

_meaning = jax.make_user_context(None)


@contextlib.contextmanager
def traced_apart(*meaning: Hashable) -> Iterator[None]:
    """A context in which nothing is taken from JAX's caches but what was traced with the same meaning.

    What `jax.jit`, or Flax's `nn.jit` within a model, traced outside knows nothing of an interceptor.
    """
    with _meaning((*meaning, _meaning.value)):
        yield


@contextlib.contextmanager
def intercepted(interceptor: Callable[..., Any], *meaning: Hashable) -> Iterator[None]:
    """`nn.intercept_methods`, of which `meaning` says what the interceptor does."""
    with traced_apart(*meaning), nn.intercept_methods(interceptor):
        yield


def compiled(function: Callable[..., Any], *static: Any) -> Callable[..., Any]:
    """`jax.jit` of a function without its first arguments, which it is compiled for.

    It is compiled once for each of them, or each time that this is called, where they cannot be hashed,
    as modules with lists in their fields cannot, or are methods, whose objects may have changed.
    """
    try:
        hash(static)
        again = any(isinstance(value, types.MethodType) for value in static)
    except TypeError:
        again = True
    if again:
        return jax.jit(functools.partial(function, *static))
    return functools.partial(_jitted(function, len(static)), *static)


@functools.cache
def _jitted(function, static):
    return jax.jit(function, static_argnums=tuple(range(static)))
