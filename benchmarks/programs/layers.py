"""How often one layer goes over x: bytes of its programs, forward and backward, by those of x.

The two are compiled apart, as in a network: compiled together, with a cotangent that does not depend on
y, they could share passes. What the forward program hands over is what `jax.vjp` keeps.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

import jbn
from benchmarks.programs import chips, hlo

LIBRARIES = {"flax": nn.BatchNorm, "jbn": jbn.linen.BatchNorm}
DTYPES = ("float32", "bfloat16")
# By name: the shape and the feature axis.
CASES = {
    "4-D": ((32, 56, 56, 256), -1),
    "3-D": ((64, 1000, 128), -1),
    "2-D, many rows": ((65536, 256), -1),
    "2-D, few rows": ((4096, 1024), -1),
    "channels first": ((32, 256, 56, 56), 1),
}


def passes(chip: str, library: str, case: str, dtype: str) -> dict[str, float]:
    """Of the training forward pass, with the new running statistics, and of the backward pass."""
    shape, axis = CASES[case]
    layer = LIBRARIES[library](use_running_average=False, axis=axis, dtype=jnp.dtype(dtype))
    x = jax.ShapeDtypeStruct(shape, dtype)
    variables = jax.eval_shape(layer.init, jax.random.key(0), x)
    params, batch_stats = variables["params"], variables["batch_stats"]

    def forward(x, params, batch_stats):
        return layer.apply({"params": params, "batch_stats": batch_stats}, x, mutable=["batch_stats"])

    def kept(x, params, batch_stats):
        return jax.vjp(lambda x, params: forward(x, params, batch_stats), x, params, has_aux=True)[1]

    def backward(vjp, dy):
        return vjp(dy)

    vjp = jax.eval_shape(kept, x, params, batch_stats)
    programs = {
        "forward": chips.compiled(chip, forward, x, params, batch_stats),
        "backward": chips.compiled(chip, backward, vjp, x),
    }
    once = x.size * x.dtype.itemsize
    return {
        name: hlo.bytes_moved(hlo.parse(program.as_text())) / once for name, program in programs.items()
    }


def measured(chip: str, quick: bool) -> dict[str, Any]:
    """By dtype, case and library: `passes`."""
    del quick
    return {
        dtype: {
            case: {library: passes(chip, library, case, dtype) for library in LIBRARIES}
            for case in CASES
        }
        for dtype in DTYPES
    }
