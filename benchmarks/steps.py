"""A step of every JAX library's layer, from the same arrays: how each is called, and the two forms.

Called alike: epsilon 1e-5, the running statistics updated with momentum 0.99 in training and returned,
y in the dtype of x, the parameters float32. What differs:

- flax.linen, flax.nnx: `dtype` is x's where that is bfloat16; NNX's layer is split into its parameters
  and statistics and merged again inside the compiled function.
- haiku: as it initializes itself for x, so with bfloat16 parameters and statistics for a bfloat16 x.
- equinox: mode "batch", under `vmap` over the samples. Where the channels are last, in training every
  position is a sample, and in inference the axes are moved: the faster of the two in each. It promotes,
  so y is cast to the dtype of x.
- keras: the JAX backend, `stateless_call`, policy mixed_bfloat16 where x is bfloat16.
- With the channels on axis 1: `axis=1`, in haiku `data_format`; equinox has them there anyway.
"""

import importlib
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen
import flax.nnx
import jax
import jax.numpy as jnp

import jbn
from benchmarks import peers
from benchmarks.layer_case import MOMENTUM, Case
from benchmarks.reference import EPSILON


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


def trees(case: Case) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters and statistics with Flax's names."""
    v = jax.tree.map(jnp.asarray, case.values)
    return {"scale": v.scale, "bias": v.bias}, {"mean": v.mean, "var": v.var}


def by_name(params: Any) -> tuple[Any, Any]:
    """Scale and bias of a dict with Flax's names."""
    return params["scale"], params["bias"]


def jbn_functional(case: Case) -> Layer:
    """`jbn.batch_norm`."""
    options = {"axis": case.axis, "momentum": MOMENTUM, "epsilon": EPSILON}

    def train(params, state, x):
        return jbn.batch_norm(x, params, state, train=True, **options)

    def infer(params, state, x):
        return jbn.batch_norm(x, params, state, train=False, **options)[0]

    return Layer(*trees(case), train, infer, by_name)


def own_dtype(case: Case) -> dict[str, Any]:
    """Flax's argument that keeps y in the dtype of x; nothing where that is the default."""
    return {} if case.dtype == "float32" else {"dtype": jnp.dtype(case.dtype)}


def linen(case: Case) -> Layer:
    """`flax.linen.BatchNorm`."""
    training, running = (
        flax.linen.BatchNorm(r, case.axis, MOMENTUM, EPSILON, **own_dtype(case)) for r in (False, True)
    )

    def train(params, state, x):
        return peers.linen(training, x, params, state)

    def infer(params, state, x):
        return running.apply({"params": params, "batch_stats": state}, x)

    return Layer(*trees(case), train, infer, by_name)


def nnx(case: Case) -> Layer:
    """`flax.nnx.BatchNorm`."""
    options = {"axis": case.axis, "momentum": MOMENTUM, "epsilon": EPSILON, **own_dtype(case)}
    layer = flax.nnx.BatchNorm(case.shape[case.axis], rngs=flax.nnx.Rngs(0), **options)
    for name, value in case.values._asdict().items():
        getattr(layer, name)[...] = jnp.asarray(value)
    graph, params, state = flax.nnx.split(layer, flax.nnx.Param, flax.nnx.BatchStat)

    def train(params, state, x):
        merged = flax.nnx.merge(graph, params, state, copy=True)
        y = merged(x, use_running_average=False)
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

    return Layer(
        own, state, train, infer, lambda p: tuple(map(p["batch_norm"].get, ("scale", "offset")))
    )


def equinox(case: Case) -> Layer:
    """`equinox.nn.BatchNorm`."""
    eqx = load("equinox")
    values = jax.tree.map(jnp.asarray, case.values)
    options = {"axis_name": "batch", "eps": EPSILON, "momentum": MOMENTUM, "mode": "batch"}
    layer, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(case.shape[case.axis], **options)
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
    layer.build(case.shape)
    scale, bias, mean, var = map(jnp.asarray, case.values)

    def train(params, state, x):
        return layer.stateless_call(params, state, x, training=True)

    def infer(params, state, x):
        return layer.stateless_call(params, state, x, training=False)[0]

    return Layer([scale, bias], [mean, var], train, infer, tuple)


JAX_LIBRARIES: dict[str, Callable[[Case], Layer]] = {
    "jbn": jbn_functional,
    "flax.linen": linen,
    "flax.nnx": nnx,
    "haiku": haiku,
    "equinox": equinox,
    "keras": keras,
}


def step(layer: Layer, mode: str) -> Callable[..., tuple[Any, Any, Any]]:
    """(params, state, x, dy) -> (y, state, (dx, dparams)); None for what the mode does not make."""

    def forward(params, state, x, dy):
        del dy
        return *layer.train(params, state, x), None

    def inference(params, state, x, dy):
        del dy
        return layer.infer(params, state, x), None, None

    def both(params, state, x, dy):
        y, vjp, state = jax.vjp(lambda p, x: layer.train(p, state, x), params, x, has_aux=True)
        dparams, dx = vjp(dy)
        return y, state, (dx, dparams)

    return {"forward": forward, "inference": inference, "forward+backward": both}[mode]


def loop(layer: Layer, mode: str) -> Callable[..., tuple[Any, Any, Any]]:
    """(steps, params, state, x, dy) -> what the last of so many steps returns.

    y is the next step's x, and dx the next step's dy, so that every step must write both.
    """
    one = step(layer, mode)

    def run(steps, params, state, x, dy):
        def body(_, carry):
            x, state, gradients = carry
            y, new, gradients = one(params, state, x, None if gradients is None else gradients[0])
            return y, state if new is None else new, gradients

        gradients = (dy, params) if mode == "forward+backward" else None
        return jax.lax.fori_loop(0, steps, body, (x, state, gradients))

    return run
