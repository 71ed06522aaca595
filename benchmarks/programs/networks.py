"""The bytes that a step of training moves: ResNet-50, and a small network of the same blocks."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import jbn
from benchmarks.programs import chips, hlo
from examples.models.resnet import Bottleneck, ResNet, no_norm, resnet50

DTYPES = ("float32", "bfloat16")
BATCH = 32
# By name: the model, and the width and height of its images.
NETWORKS = {
    "ResNet-50": (resnet50, 224),
    "3 bottleneck blocks": (functools.partial(ResNet, stage_sizes=(2, 1), block=Bottleneck), 112),
}
LAYERS = {"flax": nn.BatchNorm, "jbn": jbn.linen.BatchNorm}
NORMS = (*LAYERS, "no norm")


def norm(name: str, dtype: str) -> Callable[..., nn.Module]:
    """A factory of norms; "no norm" is the scale and the bias alone."""
    if name == "no norm":
        return no_norm
    return functools.partial(LAYERS[name], momentum=0.9, dtype=jnp.dtype(dtype))


def gradient_of(
    model: nn.Module, policy: Callable[..., Any] | None = None, **options: Any
) -> Callable[..., Any]:
    """(params, batch_stats, images, labels) -> ((loss, new batch_stats), gradient), in training.

    Args:
        model: a network.
        policy: of `jax.checkpoint` around the loss; None for no checkpoint.
        options: for the call of the model.
    """

    def loss(params, batch_stats, images, labels):
        variables = {"params": params, "batch_stats": batch_stats}
        logits, updated = model.apply(variables, images, mutable=["batch_stats"], **options)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.mean(losses), updated.get("batch_stats", {})

    if policy is not None:
        loss = jax.checkpoint(loss, policy=policy)
    return jax.value_and_grad(loss, has_aux=True)


def arguments(model: nn.Module, shape: tuple[int, ...], dtype: str, **options: Any) -> tuple:
    """Shapes and dtypes of what a gradient takes."""
    images = jax.ShapeDtypeStruct(shape, dtype)
    initialize = functools.partial(model.init, **options)
    variables = jax.eval_shape(initialize, jax.random.key(0), images)
    labels = jax.ShapeDtypeStruct(shape[:1], jnp.int32)
    return variables["params"], variables.get("batch_stats", {}), images, labels


def step(chip: str, network: str, norm_name: str, dtype: str) -> dict[str, float]:
    """What one step of SGD moves, in GB; of a TPU also what moves to and from the chip."""
    make, size = NETWORKS[network]
    model = make(norm=norm(norm_name, dtype), dtype=jnp.dtype(dtype), small_images=False, classes=1000)
    gradient = gradient_of(model, train=True)

    def stepped(params, batch_stats, images, labels):
        (loss, batch_stats), gradients = gradient(params, batch_stats, images, labels)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradients), batch_stats, loss

    given = arguments(model, (BATCH, size, size, 3), dtype, train=True)
    program = hlo.parse(chips.compiled(chip, stepped, *given, donate=(0, 1)).as_text())
    found = {"GB": hlo.bytes_moved(program) / 1e9}
    if chips.PLATFORMS[chip] == "tpu":
        found["GB off chip"] = hlo.bytes_off_chip(program) / 1e9
    return found


def measured(chip: str, quick: bool) -> dict[str, Any]:
    """By network, dtype and norm: `step`; with `quick` of the small network, and of flax and jbn."""
    networks = list(NETWORKS)[1:] if quick else NETWORKS
    norms = LAYERS if quick else NORMS
    return {
        network: {dtype: {name: step(chip, network, name, dtype) for name in norms} for dtype in DTYPES}
        for network in networks
    }
