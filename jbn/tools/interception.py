"""`flax.linen.BatchNorm` layers that run as `jbn.linen.BatchNorm`, the model being as it is."""

from contextlib import AbstractContextManager

from flax import linen as nn

from jbn._norm import Norm, as_norm, plain
from jbn.tools.compilation import intercepted
from jbn.tools.norm_layers import linen_layer


def converted(norm: Norm = plain) -> AbstractContextManager[None]:
    """A context in which the `flax.linen.BatchNorm` layers of any model run as `jbn.linen.BatchNorm`.

    The fields of the layers are kept, and their variables have the names and values that they have
    without it, so that checkpoints fit either way. Variables that `norm` has besides appear under
    `init` in such a context. Keywords of the norm may be given in the calls of the layers.

    A function that `jax.jit` has compiled outside is compiled again inside, and is outside what it was.
    Layers of a subclass are left as they are, and `capture_intermediates` finds the output of a layer
    twice.

    Args:
        norm: the norm of all the layers, a `jbn.Norm`. Default: `jbn.plain`.

    Raises:
        TypeError: `norm` is no norm.

    Example:
        >>> import jax, jax.numpy as jnp, jbn
        >>> from flax import linen as nn
        >>> model = nn.Sequential([nn.Dense(3), nn.BatchNorm(use_running_average=False)])
        >>> x = jnp.ones((4, 2))
        >>> variables = model.init(jax.random.key(0), x)
        >>> with jbn.tools.converted(jbn.ghost(groups=2)):
        ...     y, updated = model.apply(variables, x, mutable=["batch_stats"])
    """
    as_norm(norm)

    def run_as_jbn(next_function, args, kwargs, context):
        layer = context.module
        if type(layer) is not nn.BatchNorm or context.method_name != "__call__":
            return next_function(*args, **kwargs)
        return linen_layer(layer, norm=norm)(*args, **kwargs)

    return intercepted(run_as_jbn, "converted", norm)
