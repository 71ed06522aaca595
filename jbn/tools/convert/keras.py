"""Keras' BatchNormalization: the list of its weights."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jbn.tools.convert.channels import Layer, layer_arrays, params_and_stats, per_channel, require

RENORM = ("moving_stddev", "renorm_mean", "renorm_stddev")


def from_keras(
    weights: Sequence[Any],
    *,
    scale: bool = True,
    center: bool = True,
    renorm: bool = False,
    epsilon: float = 1e-3,
) -> Layer:
    """Parameters and statistics of a batch norm of Keras.

        gamma, beta -> scale, bias            moving_mean, moving_variance -> mean, var

    `momentum` and the biased variance are those of jbn, but Keras' `epsilon` is 1e-3 unless it was
    told otherwise: give it to the layer here. Keras lists what there is, so that without gamma beta is
    the first: hence the flags.

    With `renorm` there are moving_stddev, renorm_mean and renorm_stddev besides, and for `jbn.renorm`

        mean = moving_mean                    var = max(moving_stddev^2 - epsilon, 0)

    Keras corrects by the pair renorm_* and evaluates with moving_*, where `jbn.renorm` has one pair for
    both. So the two must agree, as they do where `momentum` and `renorm_momentum` are the same.

    Args:
        weights: `layer.get_weights()`, or the variables "0", "1", ... of a .weights.h5 file in order.
        scale, center, renorm: as the layer was made.
        epsilon: the layer's; used with `renorm` alone. Default 1e-3, as in Keras.

    Returns:
        params: {"scale": (C,), "bias": (C,)}, what there is of them.
        batch_stats: {"mean": (C,), "var": (C,)}, float32 at least.

    Raises:
        ValueError, TypeError: another number of weights than those flags have, weights of other shapes
            or kinds, or two pairs of statistics that differ; named in the message.

    Example:
        >>> import numpy as np, jbn
        >>> beta, moving_mean, moving_variance = np.array([[0.0], [0.5], [2.0]], "float32")
        >>> weights = [beta, moving_mean, moving_variance]
        >>> params, batch_stats = jbn.tools.from_keras(weights, scale=False)
        >>> print(params, batch_stats["var"])
        {'bias': array([0.], dtype=float32)} [2.]
    """
    used = {"gamma": scale, "beta": center, "moving_mean": True, "moving_variance": True}
    names = [name for name, there in {**used, **dict.fromkeys(RENORM, renorm)}.items() if there]
    if len(weights) != len(names):
        raise ValueError(
            f"`weights` must be {len(names)} arrays, {', '.join(names)}, for scale={scale}, "
            f"center={center}, renorm={renorm}, got {len(weights)}; give them as the layer has them"
        )
    theirs = per_channel(dict(zip(names, weights, strict=True)))
    ours = {"gamma": "scale", "beta": "bias", "moving_mean": "mean", "moving_variance": "var"}
    params, batch_stats = params_and_stats({ours[n]: v for n, v in theirs.items() if n in ours})
    if renorm:
        for moving in ("moving_mean", "moving_stddev"):
            other = moving.replace("moving", "renorm")
            if not np.allclose(theirs[moving], theirs[other], rtol=1e-4, atol=1e-6):
                raise ValueError(
                    f"`{other}` must be `{moving}`, got one that differs by up to "
                    f"{np.abs(theirs[moving] - theirs[other]).max():.2g}: jbn.renorm keeps one pair, "
                    f"and the layer had another `renorm_momentum` than `momentum`; for inference leave "
                    f"the last three weights out, with renorm=False"
                )
        deviation = theirs["moving_stddev"].astype(batch_stats["var"].dtype)
        batch_stats["var"] = np.maximum(np.square(deviation) - epsilon, 0).astype(deviation.dtype)
    return params, batch_stats


def to_keras(
    params: Mapping[str, Any],
    batch_stats: Mapping[str, Any],
    *,
    renorm: bool = False,
    epsilon: float = 1e-3,
) -> list[np.ndarray]:
    """Weights for `layer.set_weights` of Keras: the way back from `from_keras`.

    Args:
        params, batch_stats: of one layer. Without scale or bias, the layer must have been made with
            `scale=False` or `center=False`.
        renorm: add the weights of a layer with `renorm=True`, both pairs alike.
        epsilon: the layer's; used with `renorm` alone. Default 1e-3, as in Keras.

    Returns:
        gamma, beta, moving_mean, moving_variance, and moving_stddev, renorm_mean, renorm_stddev.

    Raises:
        ValueError, TypeError: an argument is no layer's.

    Example:
        >>> import jbn
        >>> len(jbn.tools.to_keras(*jbn.init(2))), len(jbn.tools.to_keras(*jbn.init(2), renorm=True))
        (4, 7)
    """
    arrays = layer_arrays(params, batch_stats)
    require(batch_stats, ["mean", "var"], "`batch_stats`")
    weights = [arrays[name] for name in ("scale", "bias", "mean", "var") if name in arrays]
    if renorm:
        deviation = np.sqrt(arrays["var"] + epsilon).astype(arrays["var"].dtype)
        weights += [deviation, arrays["mean"].copy(), deviation.copy()]
    return weights
