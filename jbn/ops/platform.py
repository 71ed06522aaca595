"""The one place where the platform that a program is compiled for makes a difference."""

from collections.abc import Callable
from typing import Any

import jax


def choose(
    *operands: Any,
    cpu: Callable[..., Any] | None = None,
    gpu: Callable[..., Any] | None = None,
    default: Callable[..., Any],
) -> Any:
    """What the function of the platform makes of the operands; decided when a program is lowered.

    All give the same numbers but for their last digits: what differs is what each compiler makes fast.
    """
    functions = {"cpu": cpu, "cuda": gpu, "rocm": gpu}
    given = {name: function for name, function in functions.items() if function is not None}
    return jax.lax.platform_dependent(*operands, **given, default=default)


def apart(*arrays: Any) -> Any:
    """The same arrays, for one more sum over them.

    XLA:CPU hands a sum to a library that computes what is summed on the way, unless something else
    needs it as well: then x - mean, or its square, is written to memory first. Behind a barrier it does
    not see that it is the same. Elsewhere it is to see it: there one pass makes several sums.
    """
    return choose(*arrays, cpu=_behind_barriers, default=_as_they_are)


def _behind_barriers(*arrays):
    # One barrier each: behind a common one all would vary over the devices that any varies over.
    return jax.tree.map(jax.lax.optimization_barrier, arrays)


def _as_they_are(*arrays):
    return arrays
