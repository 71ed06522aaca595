"""Recurrent batch norm: statistics of their own for each step of time."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jbn import _checks
from jbn._norm import Norm, plain
from jbn.variants.composition import check_inner
from jbn.variants.stacked import check_rows, repeated, rows, with_row


def timesteps(max_steps: int, norm: Norm = plain) -> Norm:
    """Batch norm in a recurrent network: one layer for all steps, statistics for each of them.

        batch_stats[t] = those of `norm`, for step t = 0 ... max_steps - 1
        y, batch_stats[t] = norm.apply(x_t, params, batch_stats[t]),   t = min(step, max_steps - 1)

    The first steps of a recurrent network have other statistics than the later ones, which are alike;
    one set for all would fit none. Steps beyond `max_steps` share the last set. Scale and bias are
    those of all steps.

    In `jax.lax.scan`, carry `batch_stats`; in `nn.scan`, `variable_carry="batch_stats"` with variables
    from the cell's own `init`; in `nnx.scan`, carry the module. Sequences of different lengths take a
    mask of those that are still running.

    A scale of 0.1 at first is what trains (0.01 or less, and 1, are unstable): `scale_init`. A first
    input that is the same in all examples has variance 0, and gradients through it are multiplied by
    1 / sqrt(epsilon): add noise to an initial state of zeros. The batch-normalized LSTM has three:

        gates = BN(W_h h; scale_h) + BN(W_x x; scale_x) + b;   c = sigmoid(f) c + sigmoid(i) tanh(g)
        h = sigmoid(o) tanh(BN(c; scale_c, bias_c))

    Args:
        max_steps: for how many steps there are statistics.
        norm: what is applied in each step: `jbn.plain` or a variant.

    Returns:
        A `Norm`, whose statistics have a first axis of `max_steps`. Its `apply`, and a Flax layer with
        it, takes `step`: an int, or an integer scalar that may be traced, >= 0.

    Raises:
        ValueError, TypeError: an argument is not of the form above.

    Example:
        >>> import jax, jax.numpy as jnp, jbn
        >>> norm = jbn.timesteps(max_steps=3)
        >>> params, batch_stats = norm.init(2)
        >>> xs = jax.random.normal(jax.random.key(0), (5, 8, 2))      # 5 steps of 8 examples
        >>> def one(batch_stats, step_x):
        ...     step, x = step_x
        ...     y, batch_stats = norm.apply(x, params, batch_stats, train=True, step=step)
        ...     return batch_stats, y
        >>> batch_stats, ys = jax.lax.scan(one, batch_stats, (jnp.arange(5), xs))
        >>> print(batch_stats["mean"].shape, ys.shape)
        (3, 2) (5, 8, 2)

    References:
        Cooijmans et al. (2017), "Recurrent Batch Normalization", arXiv:1603.09025.
    """
    return Timesteps(max_steps, norm)


@dataclasses.dataclass(frozen=True)
class Timesteps(Norm):
    """See `timesteps`."""

    max_steps: int
    norm: Norm

    def __post_init__(self):
        _checks.positive_integer("max_steps", self.max_steps)
        check_inner("timesteps", self.norm, "step")

    def init(self, features, **options):
        """Parameters once, statistics for each step."""
        params, batch_stats = self.norm.init(features, **options)
        return params, repeated(batch_stats, self.max_steps)

    def apply(self, x, params, batch_stats, *, train, step=None, **options):
        """y and the updated statistics: see `jbn.batch_norm` and `jbn.timesteps`."""
        self.check(options)
        if step is None or jnp.ndim(step) or not jnp.issubdtype(jnp.result_type(step), jnp.integer):
            raise TypeError(f"`step` must be an integer, given in the call, got {step!r}")
        check_rows("batch_stats", batch_stats, self.max_steps, "steps")
        if not isinstance(step, Tracer) and np.asarray(step) < 0:
            raise ValueError(f"`step` must not be negative, got {step}")
        step = jnp.minimum(step, self.max_steps - 1)
        y, new = self.norm.apply(x, params, rows(batch_stats, step), train=train, **options)
        return y, with_row(batch_stats, step, new)
