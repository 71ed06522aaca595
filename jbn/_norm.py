"""A norm as a value: a pair of pure functions, `init` and `apply`, for the layers and for variants."""

import dataclasses
import functools
import inspect
from collections.abc import Iterable, Sequence
from typing import Any

import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from jbn import _batch_norm
from jbn._typing import Array, BatchStats, Flag, Params


@dataclasses.dataclass(frozen=True)
class Norm:
    """Plain batch norm; every variant derives from it.

    After optax: a pair of pure functions. A frozen dataclass besides, so that equal settings are equal
    norms, hashable, picklable and printable: one compiled program serves them all.

    A variant of one's own overrides `apply`, and `init` where it has other parameters or statistics.
    Its keywords beyond those of `jbn.batch_norm` reach it from the layers' calls; what it does not know
    it hands on to the norm that it changes, and `check` is what fails where nobody knows it.

    Example:
        >>> import dataclasses, jax.numpy as jnp, jbn
        >>> @dataclasses.dataclass(frozen=True)
        ... class Noisy(jbn.Norm):
        ...     norm: jbn.Norm = jbn.plain
        ...     def init(self, features, **options):
        ...         return self.norm.init(features, **options)
        ...     def apply(self, x, params, batch_stats, *, train, noise=0.0, **options):
        ...         self.check(options)
        ...         y, batch_stats = self.norm.apply(x, params, batch_stats, train=train, **options)
        ...         return y + noise, batch_stats
        >>> norm = Noisy(norm=jbn.inplace("leaky_relu"))
        >>> params, batch_stats = norm.init(3)
        >>> y, batch_stats = norm.apply(jnp.ones((2, 3)), params, batch_stats, train=True, noise=0.5)
        >>> layer = jbn.linen.BatchNorm(use_running_average=False, norm=norm)   # layer(x, noise=0.5)
    """

    def init(
        self,
        features: int | Sequence[int],
        *,
        dtype: DTypeLike = jnp.float32,
        momentum: ArrayLike | None = 0.99,
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Parameters and statistics: see `jbn.init`."""
        return _batch_norm.init(features, dtype=dtype, momentum=momentum)

    def apply(
        self, x: ArrayLike, params: Params, batch_stats: BatchStats, *, train: Flag, **options: Any
    ) -> tuple[Array, dict[str, Array]]:
        """y and the updated statistics: see `jbn.batch_norm`, whose keywords are the options."""
        self.check(options)
        return _batch_norm.batch_norm(x, params, batch_stats, train=train, **options)

    def check(self, options: Iterable[str], by_layer: Iterable[str] = ()) -> None:
        """Fails where an option is none of those that `apply` takes, or one that a layer gives it."""
        known = keywords(self) - set(by_layer)
        if unknown := sorted(set(options) - known):
            names = ", ".join(f"`{name}`" for name in unknown)
            call = (
                " in the call of a layer; besides `use_running_average` and `mask`" if by_layer else ";"
            )
            hint = "; `train=True` is `use_running_average=False`" if "train" in unknown else ""
            raise TypeError(
                f"{self!r} takes no keyword {names}{call} it takes "
                f"{', '.join(sorted(known)) or 'nothing'}{hint}"
            )


# What the layers hand on besides, from their fields and arguments.
BY_LAYER = (
    *("train", "axis", "momentum", "epsilon", "mask"),
    *("axis_name", "axis_index_groups", "running_variance", "dtype"),
)

plain = Norm()


@functools.cache
def keywords(norm: Norm) -> frozenset[str]:
    """What `apply` takes by keyword: its own options, and those of what it hands the others on to."""
    inner = getattr(norm, "norm", None)
    if type(norm) is Norm or not isinstance(inner, Norm):
        handed_on = _keyword_only(_batch_norm.batch_norm) - {"form"}
    else:
        handed_on = keywords(inner)
    takes_others = any(
        p.kind is p.VAR_KEYWORD for p in inspect.signature(norm.apply).parameters.values()
    )
    return _keyword_only(norm.apply) | (handed_on if takes_others else frozenset())


def _keyword_only(function):
    parameters = inspect.signature(function).parameters.values()
    return frozenset(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)


def as_norm(norm: Any) -> Norm:
    """A norm, and an error for anything else, such as the function that makes one."""
    if not isinstance(norm, Norm):
        hint = (
            f"; call it: {norm.__name__}(...)" if callable(norm) and hasattr(norm, "__name__") else ""
        )
        raise TypeError(f"`norm` must be a jbn.Norm, such as jbn.plain, got {norm!r}{hint}")
    return norm
