"""How many all-reduces one layer makes, forward and backward, on 8 GPUs and on 16 and 256 TPU chips."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from benchmarks.programs import chips, hlo
from benchmarks.programs.layers import LIBRARIES

CHIPS = {"gpu": (8,), "tpu": (16, 256)}
WAYS = ("sharded jit", "axis_name")
# Of one chip.
SHAPE = (2, 14, 14, 256)


def counts(chip: str, count: int, way: str, library: str) -> dict[str, list[int]]:
    """Fewest and most by the branch that the data decide, and the most is the unusual one.

    The backward pass is a whole step less a forward pass. Its cotangent depends on y, so that none of
    its sums can be made with those of the forward pass. The gradients of scale and bias are among its
    results: under jit those of all samples, with a named axis those of one chip.
    """
    layer = LIBRARIES[library](use_running_average=False, axis_name="i" if way == "axis_name" else None)
    x = jax.ShapeDtypeStruct((count * SHAPE[0], *SHAPE[1:]), jnp.float32)
    plain = LIBRARIES[library](use_running_average=False)
    variables = jax.eval_shape(plain.init, jax.random.key(0), x)

    def forward(params, batch_stats, x):
        return layer.apply({"params": params, "batch_stats": batch_stats}, x, mutable=["batch_stats"])

    def step(params, batch_stats, x):
        def of(params, x):
            return forward(params, batch_stats, x)

        y, vjp, updated = jax.vjp(of, params, x, has_aux=True)
        dparams, dx = vjp(jnp.sin(y))
        return dx, (dparams, updated)

    mesh = chips.mesh(chip, count)
    given = (
        chips.spread(variables["params"], mesh, P()),
        chips.spread(variables["batch_stats"], mesh, P()),
        chips.spread(x, mesh, P("i")),
    )

    def made(function):
        if way == "axis_name":
            specs = {"in_specs": (P(), P(), P("i")), "out_specs": (P("i"), P())}
            function = jax.shard_map(function, mesh=mesh, check_vma=False, **specs)
        return hlo.all_reduces(hlo.parse(chips.compiled(chip, function, *given).as_text()))

    first, both = made(forward), made(step)
    return {"forward": list(first), "backward": [b - f for f, b in zip(first, both, strict=True)]}


def measured(chip: str, quick: bool) -> dict[str, Any]:
    """By number of chips, way and library: `counts`."""
    numbers = CHIPS[chips.PLATFORMS[chip]]
    return {
        f"{count} chips": {
            way: {library: counts(chip, count, way, library) for library in LIBRARIES} for way in WAYS
        }
        for count in (numbers[:1] if quick else numbers)
    }
