"""Training or inference, by a flag that may be traced."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jbn import _collectives
from jbn._typing import Array, AxisName, Flag, Groups

Result = tuple[Array, dict[str, Array]]
Step = Callable[[dict[str, Array]], Result]


def by_mode(
    train: Flag,
    training: Step,
    inference: Step,
    batch_stats: dict[str, Array],
    *arrays: Array | None,
    axis_name: AxisName | None,
    groups: Groups | None,
) -> Result:
    """y and the statistics by one of two functions of the statistics; a traced flag makes a `lax.cond`.

    Both have to give the same types: the statistics are made to vary over the devices that the
    `arrays` vary over, which are what the statistics are made of in training, and promoted as training
    promotes them.
    """
    if isinstance(train, bool):
        return training(batch_stats) if train else inference(batch_stats)
    for v in arrays:
        if v is not None:
            nothing = jnp.sum(jnp.zeros_like(v, dtype=jnp.float32))
            if axis_name is not None:
                (nothing,) = _collectives.psum((nothing,), axis_name, groups)
            batch_stats = {name: s + nothing.astype(s.dtype) for name, s in batch_stats.items()}
    _, updated = jax.eval_shape(training, batch_stats)
    batch_stats = {name: _typed(s, updated[name]) for name, s in batch_stats.items()}
    return jax.lax.cond(train, training, inference, batch_stats)


def _typed(s, like):
    s = s.astype(like.dtype)
    sharding = like.sharding
    return s if sharding in (None, jax.typeof(s).sharding) else jax.sharding.reshard(s, sharding)
