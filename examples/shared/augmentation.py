"""Digits moved, turned and scaled a little at random, and drawn larger, in one interpolation."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

LARGEST_TURN = math.radians(10)
LARGEST_STRETCH = 0.1
LARGEST_SHIFT = 0.08


@functools.partial(jax.jit, static_argnames="size")
def random_views(key: jax.Array, images: Any, size: int) -> jax.Array:
    """Each image from a place of its own: no flips, for a mirrored digit is another one or none.

    Args:
        key: a random key.
        images: (N, height, width, channels).
        size: height and width of the result.

    Returns:
        (N, size, size, channels): turned by up to 10 degrees, scaled by up to 10% and shifted by up to
        8% of the width and of the height, each uniformly at random.
    """
    turn, stretch, shift = (
        limit * jax.random.uniform(k, shape, minval=-1)
        for k, limit, shape in zip(
            jax.random.split(key, 3),
            (LARGEST_TURN, LARGEST_STRETCH, LARGEST_SHIFT),
            ((len(images),), (len(images),), (len(images), 2)),
            strict=True,
        )
    )
    return jax.vmap(functools.partial(_view, size=size))(images, turn, 1 + stretch, shift)


def upright(images: Any, size: int) -> jax.Array:
    """The images (N, height, width, channels) as they are, drawn larger: (N, size, size, channels)."""
    n = len(images)
    view = functools.partial(_view, size=size)
    return jax.vmap(view)(images, jnp.zeros(n), jnp.ones(n), jnp.zeros((n, 2)))


def _view(image, turn, scale, shift, size):
    """Linear interpolation of one image at the places of the pixels; the background is 0."""
    centres = (jnp.arange(size) + 0.5) / size - 0.5
    rows, columns = jnp.meshgrid(centres, centres, indexing="ij")
    cos, sin = jnp.cos(turn) / scale, jnp.sin(turn) / scale
    places = (cos * rows - sin * columns + shift[0], sin * rows + cos * columns + shift[1])
    places = [(p + 0.5) * n - 0.5 for p, n in zip(places, image.shape, strict=False)]
    interpolate = functools.partial(map_coordinates, coordinates=places, order=1)
    return jax.vmap(interpolate, in_axes=-1, out_axes=-1)(image)
