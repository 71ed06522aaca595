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
