"""Every way to run one training step of a layer on several devices, as functions of whole arrays.

A way takes `make`, which builds the layer from `axis_name` and `axis_index_groups`, and gives a
function of (params, batch_stats, x, mask, dy) whose result is, as NumPy arrays:

    y, dx           of the shape of x
    dscale, dbias   summed over the devices
    mean, var       the new running statistics, with the devices in front where each has its own
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.shared.adapters import linen_apply

DEVICES = 8
GROUPS = ((0, 2, 4, 6), (1, 3, 5, 7))
Step = Callable[..., dict[str, np.ndarray]]
Way = Callable[[Callable[..., Any]], Step]


def mesh(shape: Sequence[int] = (DEVICES,), kind: AxisType = AxisType.Auto) -> Mesh:
    """The first devices, along axes i, j."""
    names = ("i", "j")[: len(shape)]
    devices = jax.devices()[: math.prod(shape)]
    return jax.make_mesh(shape, names, axis_types=(kind,) * len(shape), devices=devices)


def local_loss(layer: Any, params, x, batch_stats, mask, dy):
    """sum(y * dy), whose gradients are those of the layer at the cotangent dy; and the outputs."""
    y, new = linen_apply(layer, x, params, batch_stats, mask)
    return jnp.sum(y * dy), (y, new)


def local_step(layer: Any, params, batch_stats, x, mask, dy):
    """The step of one device: its share of the parameters' gradients, dx, and the outputs."""
    loss = jax.grad(functools.partial(local_loss, layer), (0, 1), has_aux=True)
    return loss(params, x, batch_stats, mask, dy)


def outputs(result: Any, shape: Sequence[int]) -> dict[str, np.ndarray]:
    """The result under the names above."""
    (dparams, dx), (y, new) = jax.tree.map(np.asarray, result)
    return {
        "y": y.reshape(shape),
        "dx": dx.reshape(shape),
        "dscale": dparams["scale"],
        "dbias": dparams["bias"],
        **{name: new[name].reshape(-1, shape[-1]) for name in ("mean", "var")},
    }


def alone(make: Callable[..., Any]) -> Step:
    """All samples on one device: what float32 itself leaves."""
    call = jax.jit(functools.partial(local_step, make()))
    return lambda *arrays: outputs(call(*arrays), arrays[2].shape)


def mapped(transform: Callable[..., Any], groups: Any = None) -> Way:
    """`jax.vmap` or `jax.pmap` over one axis."""

    def way(make):
        layer = make(axis_name="i", axis_index_groups=groups)
        call = transform(
            functools.partial(local_step, layer), axis_name="i", in_axes=(None, None, 0, 0, 0)
        )
        return _on_blocks(jax.jit(call) if transform is jax.vmap else call, (DEVICES,))

    return way


def nested(make: Callable[..., Any]) -> Step:
    """One `jax.vmap` inside another, both axes synchronized."""
    layer = make(axis_name=("i", "j"))
    axes = (None, None, 0, 0, 0)
    inner = jax.vmap(functools.partial(local_step, layer), axis_name="j", in_axes=axes)
    return _on_blocks(jax.jit(jax.vmap(inner, axis_name="i", in_axes=axes)), (2, DEVICES // 2))


def _on_blocks(call: Callable[..., Any], blocks: tuple[int, ...]) -> Step:
    def split(v):
        return v.reshape(*blocks, -1, *v.shape[1:])

    def step(params, batch_stats, x, mask, dy):
        (dparams, dx), aux = call(params, batch_stats, *jax.tree.map(split, (x, mask, dy)))
        dparams = jax.tree.map(lambda g: g.reshape(-1, g.shape[-1]).sum(0), dparams)
        return outputs(((dparams, dx), aux), x.shape)

    return step


def sharded(check_vma: bool, inside: bool = True, groups: Any = None) -> Way:
    """`jax.shard_map`, its variance types checked or not, the gradient taken inside it or outside."""

    def way(make):
        layer = make(axis_name="i", axis_index_groups=groups)
        rows, whole = P("i"), P()

        def within(*arrays):
            (dparams, dx), (y, new) = local_step(layer, *arrays)
            if not check_vma:  # a checked one sums the gradients of what is replicated by itself
                dparams = jax.lax.psum(dparams, "i")
            return (dparams, dx), (y, jax.tree.map(lambda s: s[None], new))

        def loss(params, x, *arrays):
            total, (y, new) = local_loss(layer, params, x, *arrays)
            return jax.lax.psum(total, "i"), (y, jax.tree.map(lambda s: s[None], new))

        # A checked shard_map proves that all devices have the same; else every device's are returned.
        stats = whole if check_vma and groups is None else rows
        shard_map = functools.partial(jax.shard_map, mesh=mesh(), check_vma=check_vma)
        if inside:
            specs, out = (whole, whole, rows, rows, rows), ((whole, rows), (rows, stats))
            call = jax.jit(shard_map(within, in_specs=specs, out_specs=out))
            return lambda *arrays: outputs(call(*arrays), arrays[2].shape)
        specs, out = (whole, rows, whole, rows, rows), (whole, (rows, stats))
        mapped_loss = shard_map(loss, in_specs=specs, out_specs=out)
        gradient = jax.jit(jax.grad(mapped_loss, (0, 1), has_aux=True))

        def step(params, batch_stats, x, mask, dy):
            return outputs(gradient(params, x, batch_stats, mask, dy), x.shape)

        return step

    return way


def partitioned(kind: AxisType, spec: P, shape: tuple[int, ...] = (DEVICES,)) -> Way:
    """`jax.jit` over sharded arrays, without a named axis; the state is sharded as the channels."""

    def way(make):
        devices = mesh(shape, kind)
        call = jax.jit(functools.partial(local_step, make()))

        def step(params, batch_stats, x, mask, dy):
            whole = P(*spec, *(None,) * (x.ndim - len(spec)))
            state, thin = P(whole[-1]), P(*whole[:-1], None)
            arrays = [(params, state), (batch_stats, state), (x, whole), (mask, thin), (dy, whole)]
            with jax.set_mesh(devices):
                placed = (jax.device_put(v, NamedSharding(devices, s)) for v, s in arrays)
                return outputs(call(*placed), x.shape)

        return step

    return way


SPECS = {
    "batch": (P("i"),),
    "channels": (P(None, None, None, "i"),),
    "batch and channels": (P("i", None, None, "j"), (DEVICES // 2, 2)),
    "spatial": (P(None, "i"),),
}
WAYS: dict[str, Way] = {
    "one device": alone,
    "pmap": mapped(jax.pmap),
    "vmap": mapped(jax.vmap),
    "vmap in vmap, both axes": nested,
    "shard_map, checked, gradient inside": sharded(True),
    "shard_map, checked, gradient outside": sharded(True, inside=False),
    "shard_map, unchecked, gradient inside": sharded(False),
    "shard_map, unchecked, gradient outside": sharded(False, inside=False),
    **{
        f"jit, {kind.name} axes, {name} sharded": partitioned(kind, *spec)
        for kind in (AxisType.Auto, AxisType.Explicit)
        for name, spec in SPECS.items()
    },
}
GROUPED: dict[str, Way] = {
    "groups, pmap": mapped(jax.pmap, GROUPS),
    "groups, vmap": mapped(jax.vmap, GROUPS),
    "groups, shard_map, checked": sharded(True, groups=GROUPS),
    "groups, shard_map, unchecked": sharded(False, groups=GROUPS),
}
