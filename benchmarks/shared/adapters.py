"""How every JAX library's layer is called, from the same arrays, as pure functions.

Called alike: epsilon 1e-5, the running statistics updated with momentum 0.99 in training and returned,
y in the dtype of x, the parameters float32. What differs:

- NNX: the layer is split into its parameters and statistics and merged again inside the function.
- haiku: as it initializes itself for x, so with bfloat16 parameters and statistics for a bfloat16 x.
- equinox: mode "batch", under `vmap` over the samples. Where the channels are last, in training every
  position is a sample, and in inference the axes are moved: the faster of the two in each. It promotes,
  so y is cast to the dtype of x.
- keras: the JAX backend, `stateless_call`, policy mixed_bfloat16 where x is bfloat16.
- With the channels on axis 1: `axis=1`, in haiku `data_format`; equinox has them there anyway.
"""

import functools
import importlib
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen
import flax.nnx
import jax
import jax.numpy as jnp

import jbn
from benchmarks.shared.case import MOMENTUM, Case
from benchmarks.shared.reference import EPSILON


def load(library: str) -> Any:
    """Imports a library; Keras with the JAX backend, which is chosen at its first import."""
    os.environ["KERAS_BACKEND"] = "jax"
    return importlib.import_module(library)


class Layer(NamedTuple):
    """A library's layer as pure functions of its own trees."""

    params: Any
    state: Any
    train: Callable[[Any, Any, Any], tuple[Any, Any]]  # (params, state, x) -> (y, state)
    infer: Callable[[Any, Any, Any], Any]  # (params, state, x) -> y
    affine: Callable[[Any], tuple[Any, Any]]  # of a tree like params: scale and bias


Adapter = Callable[[Case], Layer]


def trees(case: Case) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters and statistics with Flax's names."""
    v = jax.tree.map(jnp.asarray, case.values)
    return {"scale": v.scale, "bias": v.bias}, {"mean": v.mean, "var": v.var}


def by_name(params: Any) -> tuple[Any, Any]:
    """Scale and bias of a dict with Flax's names."""
    return params["scale"], params["bias"]


def functional(case: Case) -> Layer:
    """`jbn.batch_norm`."""
    call = functools.partial(
        jbn.batch_norm, axis=case.axis, momentum=MOMENTUM, epsilon=EPSILON, mask=case.mask
    )

    def train(params, state, x):
        return call(x, params, state, train=True)

    def infer(params, state, x):
        return call(x, params, state, train=False)[0]

    return Layer(*trees(case), train, infer, by_name)


def linen_apply(layer: Any, x: Any, params: Any, batch_stats: Any, mask: Any = None) -> tuple[Any, Any]:
    """A batch norm of Linen's, Flax's or jbn's, in training: y and the new running statistics."""
    variables = {"params": params, "batch_stats": batch_stats}
    y, updated = layer.apply(variables, x, mask=mask, mutable=["batch_stats"])
    return y, updated["batch_stats"]


def linen(module: Any, case: Case, **options: Any) -> Layer:
    """`flax.linen.BatchNorm` or jbn's, which takes its place."""
    training, running = (
        module(r, case.axis, MOMENTUM, EPSILON, jnp.dtype(case.dtype), **options) for r in (False, True)
    )

    def train(params, state, x):
        return linen_apply(training, x, params, state, case.mask)

    def infer(params, state, x):
        return running.apply({"params": params, "batch_stats": state}, x)

    return Layer(*trees(case), train, infer, by_name)


def nnx(module: Any, case: Case) -> Layer:
    """`flax.nnx.BatchNorm` or jbn's."""
    options = {"axis": case.axis, "momentum": MOMENTUM, "epsilon": EPSILON, "dtype": case.dtype}
    layer = module(case.x.shape[case.axis], rngs=flax.nnx.Rngs(0), **options)
    for name, value in case.values._asdict().items():
        getattr(layer, name)[...] = jnp.asarray(value)
    graph, params, state = flax.nnx.split(layer, flax.nnx.Param, flax.nnx.BatchStat)

    def train(params, state, x):
        merged = flax.nnx.merge(graph, params, state, copy=True)
        y = merged(x, use_running_average=False, mask=case.mask)
        return y, flax.nnx.state(merged, flax.nnx.BatchStat)

    def infer(params, state, x):
        return flax.nnx.merge(graph, params, state)(x, use_running_average=True)

    return Layer(params, state, train, infer, lambda p: (p["scale"][...], p["bias"][...]))


def haiku(case: Case) -> Layer:
    """`haiku.BatchNorm`."""
    hk = load("haiku")
    layout = "channels_first" if case.axis == 1 else "channels_last"

    def call(x, is_training):
        return hk.BatchNorm(True, True, MOMENTUM, EPSILON, data_format=layout)(x, is_training)

    layer = hk.transform_with_state(call)
    params, state = layer.init(jax.random.key(0), jnp.zeros_like(case.x), True)
    given = {
        "scale": case.values.scale,
        "offset": case.values.bias,
        "batch_norm/~/mean_ema": case.values.mean,
        "batch_norm/~/var_ema": case.values.var,
    }

    def like(value, leaf):
        return jnp.asarray(value, leaf.dtype).reshape(leaf.shape)

    own = {"batch_norm": {k: like(given[k], leaf) for k, leaf in params["batch_norm"].items()}}
    state = {name: {**ema, "average": like(given[name], ema["average"])} for name, ema in state.items()}

    def train(params, state, x):
        return layer.apply(params, state, None, x, True)

    def infer(params, state, x):
        return layer.apply(params, state, None, x, False)[0]

    def affine(params):
        return params["batch_norm"]["scale"], params["batch_norm"]["offset"]

    return Layer(own, state, train, infer, affine)


def equinox(case: Case) -> Layer:
    """`equinox.nn.BatchNorm`."""
    eqx = load("equinox")
    values = jax.tree.map(jnp.asarray, case.values)
    options = {"axis_name": "batch", "eps": EPSILON, "momentum": MOMENTUM, "mode": "batch"}
    layer, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(case.x.shape[case.axis], **options)
    # An equinox State may be used once only: its leaves may be used again.
    state = state.set(layer.batch_state_index, (values.mean, values.var))
    leaves, structure = jax.tree.flatten(state)

    def call(params, leaves, samples, inference):
        own = eqx.tree_at(lambda b: (b.weight, b.bias), layer, params)

        def one(sample, state):
            return own(sample, state, inference=inference)

        over_samples = jax.vmap(one, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
        y, state = over_samples(samples, jax.tree.unflatten(structure, leaves))
        return y.astype(samples.dtype), jax.tree.leaves(state)

    def train(params, leaves, x):
        samples = x if case.axis == 1 else x.reshape(-1, x.shape[-1])
        y, leaves = call(params, leaves, samples, False)
        return y.reshape(x.shape), leaves

    def infer(params, leaves, x):
        y = call(params, leaves, jnp.moveaxis(x, case.axis, 1), True)[0]
        return jnp.moveaxis(y, 1, case.axis)

    return Layer((values.scale, values.bias), leaves, train, infer, lambda p: p)


def keras(case: Case) -> Layer:
    """`keras.layers.BatchNormalization`."""
    policy = "float32" if case.dtype == "float32" else f"mixed_{case.dtype}"
    options = {"axis": case.axis, "momentum": MOMENTUM, "epsilon": EPSILON, "dtype": policy}
    layer = load("keras").layers.BatchNormalization(**options)
    layer.build(case.x.shape)
    scale, bias, mean, var = map(jnp.asarray, case.values)

    def train(params, state, x):
        return layer.stateless_call(params, state, x, training=True)

    def infer(params, state, x):
        return layer.stateless_call(params, state, x, training=False)[0]

    return Layer([scale, bias], [mean, var], train, infer, tuple)


ADAPTERS: dict[str, Adapter] = {
    "jbn": functional,
    "jbn.linen": functools.partial(linen, jbn.linen.BatchNorm),
    "jbn.nnx": functools.partial(nnx, jbn.nnx.BatchNorm),
    "flax.linen": functools.partial(linen, flax.linen.BatchNorm),
    "flax.linen, again": functools.partial(linen, flax.linen.BatchNorm),
    "flax.linen, two-pass": functools.partial(linen, flax.linen.BatchNorm, use_fast_variance=False),
    "flax.nnx": functools.partial(nnx, flax.nnx.BatchNorm),
    "haiku": haiku,
    "equinox": equinox,
    "keras": keras,
}
