"""What `jax.checkpoint` may throw away and make again: the elementwise part of a network."""

from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

MOMENTS = "jbn.moments"

_policy = jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.dots_saveable, jax.checkpoint_policies.save_only_these_names(MOMENTS)
)


def named(moments: Any) -> Any:
    """The moments, marked as worth keeping: to make them again takes passes over x and collectives."""
    return checkpoint_name(moments, MOMENTS)


def remat_policy(primitive: Any, *inputs: Any, **params: Any) -> Any:
    """A policy for `jax.checkpoint`: keep one tensor per layer where there were two or more.

    Saved are the results of convolutions and matrix products, and the moments of batch norm, two
    vectors per layer (they carry the name "jbn.moments", for policies of your own). Everything else is
    made again in the backward pass from those, by elementwise passes: batch norm's output, the
    activation, residual sums. For activations that cannot be inverted, as ReLU; else see `jbn.inplace`.

    Put `jax.checkpoint` around the loss, or around each block of a network; around a block its input is
    kept as well, and around a whole ResNet a residual sum is made again from the one before it. In the
    body of a `lax.scan` JAX keeps x twice, as what the convolution gives and as what the norm needs.

    Args:
        primitive, inputs, params: what `jax.checkpoint` calls a policy with.

    Returns:
        Whether the results are saved.

    Example:
        >>> import functools, jax, jax.numpy as jnp, jbn
        >>> params, batch_stats = jbn.init(3)
        >>> @functools.partial(jax.checkpoint, policy=jbn.remat_policy)
        ... def block(kernel, x):
        ...     y, updated = jbn.batch_norm(x @ kernel, params, batch_stats, train=True)
        ...     return jax.nn.relu(y), updated
        >>> def loss(kernel, x):
        ...     y, updated = block(kernel, x)
        ...     return jnp.sum(y**2), updated
        >>> x = jax.random.normal(jax.random.key(0), (8, 4))
        >>> grads, batch_stats = jax.grad(loss, has_aux=True)(jnp.ones((4, 3)), x)

    With Linen: `nn.remat(Block, policy=jbn.remat_policy)`; with NNX: `nnx.remat(f, policy=...)`.
    """
    return _policy(primitive, *inputs, **params)
