"""Folding on kernels: the layer with the norm in it is the layer and the norm, in float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jbn
from tolerance import tolerance

RNG = np.random.default_rng(0)
PARAMS = [("scale", "bias"), ("scale",), ("bias",), ()]


def norm_of(channels, names=("scale", "bias"), dtype="float32"):
    """params and batch_stats; scales of either sign."""
    arrays = {name: RNG.normal(size=channels) for name in ("scale", "bias", "mean")}
    arrays["scale"] += np.where(arrays["scale"] < 0, -0.5, 0.5)
    arrays["var"] = RNG.uniform(0.1, 3, channels)
    arrays = {name: jnp.asarray(v, dtype) for name, v in arrays.items()}
    return {name: arrays[name] for name in names}, {name: arrays[name] for name in ("mean", "var")}


def normalized(x, params, batch_stats, epsilon):
    """The oracle, float64."""
    p, s = ({name: np.asarray(v, np.float64) for name, v in d.items()} for d in (params, batch_stats))
    z = (np.asarray(x, np.float64) - s["mean"]) / np.sqrt(s["var"] + epsilon)
    return z * p.get("scale", 1) + p.get("bias", 0)


def close(actual, expected, terms):
    size = np.abs(expected).max()
    np.testing.assert_allclose(actual / size, expected / size, **tolerance("float32", terms))


def applied(layer, kernel, bias, x):
    """What a layer returns, in float64; no bias is one of zeros."""
    bias = np.zeros(layer.features) if bias is None else bias
    with jax.enable_x64(True):
        x, *own = (jnp.asarray(np.asarray(v), "float64") for v in (x, kernel, bias))
        return np.asarray(layer.apply({"params": dict(zip(("kernel", "bias"), own, strict=True))}, x))


def values(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


LAYERS = {
    "dense": (nn.Dense(6), (4, 6), (5, 4)),
    "strided": (nn.Conv(6, (3,), 2), (3, 4, 6), (2, 7, 4)),
    "zero padding": (nn.Conv(6, (3, 2)), (3, 2, 4, 6), (2, 4, 4, 4)),
    "dilated": (nn.Conv(6, (3,), kernel_dilation=2, padding="CIRCULAR"), (3, 4, 6), (2, 6, 4)),
    "3d": (nn.Conv(6, (2, 1, 3), padding="VALID"), (2, 1, 3, 4, 6), (1, 3, 3, 4, 4)),
    "grouped": (nn.Conv(6, (3,), feature_group_count=2), (3, 2, 6), (2, 4, 4)),
    "depthwise": (nn.Conv(8, (3, 3), feature_group_count=4), (3, 3, 1, 8), (2, 4, 4, 4)),
    "transposed": (nn.ConvTranspose(6, (3, 3), (2, 2)), (3, 3, 4, 6), (2, 3, 3, 4)),
    "transposed, the kernel too": (
        nn.ConvTranspose(6, (3, 2), (2, 1), transpose_kernel=True),
        (3, 2, 6, 4),
        (2, 3, 3, 4),
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_into_the_previous_layer(name):
    layer, shape, size = LAYERS[name]
    kernel, x = values(*shape), values(*size)
    params, stats = norm_of(layer.features)
    layout = "flax_transposed" if getattr(layer, "transpose_kernel", False) else "flax"
    for bias in (None, values(layer.features)):
        expected = normalized(applied(layer, kernel, bias, x), params, stats, 1e-3)
        folded = jbn.tools.fold_into_previous(kernel, bias, params, stats, epsilon=1e-3, layout=layout)
        close(applied(layer, *folded, x), expected, kernel.size // layer.features)


@pytest.mark.parametrize("names", PARAMS)
def test_without_scale_or_bias(names):
    kernel, bias, x = (np.asarray(values(*shape)) for shape in ((4, 3), (3,), (5, 4)))
    params, stats = norm_of(3, names)
    folded, shifted = map(np.asarray, jbn.tools.fold_into_previous(kernel, bias, params, stats))
    close(x @ folded + shifted, normalized(x @ kernel + bias, params, stats, 1e-5), 4)
    params, stats = norm_of(4, names)
    folded, shifted = map(np.asarray, jbn.tools.fold_into_next(kernel, bias, params, stats))
    expected = normalized(x, params, stats, 1e-5) @ kernel + bias
    close(x @ folded + shifted, expected, 4)


@pytest.mark.parametrize(
    ("padding", "groups"), [("VALID", 1), ("CIRCULAR", 2), ("REFLECT", 4), ("VALID", 4)]
)
def test_into_the_next_convolution(padding, groups):
    layer = nn.Conv(8, (3, 2), padding=padding, feature_group_count=groups)
    kernel, x = values(3, 2, 4 // groups, 8), values(2, 5, 6, 4)
    params, stats = norm_of(4)
    for bias in (None, values(8)):
        expected = applied(layer, kernel, bias, normalized(x, params, stats, 0.1))
        folded = jbn.tools.fold_into_next(kernel, bias, params, stats, groups=groups, epsilon=0.1)
        close(applied(layer, *folded, x), expected, kernel.size // 8)


def test_zero_padding_needs_the_input_padded_with_what_the_norm_makes_zero():
    layer, kernel, x = nn.Conv(5, (3, 3), padding=1), values(3, 3, 3, 5), values(2, 4, 4, 3)
    for names in PARAMS[1:3]:
        params, stats = norm_of(3, names)
        expected = applied(layer, kernel, None, normalized(x, params, stats, 1e-5))
        folded = jbn.tools.fold_into_next(kernel, None, params, stats)
        padded = np.empty((2, 6, 6, 3), np.float32)
        padded[:] = jbn.tools.fold_padding(params, stats)
        padded[:, 1:-1, 1:-1] = x
        close(applied(layer.clone(padding="VALID"), *folded, padded), expected, 27)
        # With zeros it is wrong at the border, and there alone.
        y = applied(layer, *folded, x)
        close(y[:, 1:-1, 1:-1], expected[:, 1:-1, 1:-1], 27)
        assert np.abs(y - expected).max() > 0.1


@pytest.mark.parametrize(
    ("fold", "channels"), [(jbn.tools.fold_into_previous, 8), (jbn.tools.fold_into_next, 4)]
)
def test_torchs_layout_is_flaxs_transposed(fold, channels):
    """(out, in / groups, ...) against (..., in / groups, out)."""
    kernel = values(2, 3, 2, 8)
    params, stats = norm_of(channels)
    flax, bias = fold(kernel, None, params, stats, groups=2)
    torch, same = fold(kernel.transpose(3, 2, 0, 1), None, params, stats, layout="torch", groups=2)
    np.testing.assert_array_equal(torch.transpose(2, 3, 1, 0), flax)
    np.testing.assert_allclose(same, bias, **tolerance("float32", 12))


def test_grouped_and_transposed_in_torchs_layout():
    """Each input channel is of a group, and makes that group's outputs alone."""
    groups, kernel = 3, values(6, 4, 5)
    params, stats = norm_of(12)
    folded, bias = jbn.tools.fold_into_previous(
        kernel, None, params, stats, layout="torch_transposed", groups=groups
    )
    folded, kernel = np.asarray(folded), np.asarray(kernel)
    gain = np.asarray(params["scale"]) / np.sqrt(np.asarray(stats["var"]) + 1e-5)
    for i, o in itertools.product(range(6), range(4)):
        output = i // 2 * 4 + o
        np.testing.assert_allclose(folded[i, o], kernel[i, o] * gain[output], rtol=1e-6)
    np.testing.assert_allclose(bias, params["bias"] - stats["mean"] * gain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fold", [jbn.tools.fold_into_previous, jbn.tools.fold_into_next])
class TestBoth:
    def test_half_precision_is_rounded_once(self, fold):
        kernel, bias = values(3, 3).astype("bfloat16"), values(3).astype("bfloat16")
        params, stats = norm_of(3)
        half = fold(kernel, bias, params, stats)
        full = fold(kernel.astype("float32"), bias.astype("float32"), params, stats)
        assert [v.dtype for v in half] == ["bfloat16", "bfloat16"]
        for h, f in zip(half, full, strict=True):
            np.testing.assert_array_equal(h, f.astype("bfloat16"))

    def test_half_precision_of_the_norm_s_parameters(self, fold):
        params, stats = norm_of(3)
        params = jax.tree.map(lambda v: v.astype("bfloat16"), params)
        kernel, _ = fold(jnp.ones((3, 3)), None, params, stats)
        gain = params["scale"].astype("float32") / np.sqrt(np.asarray(stats["var"]) + 1e-5)
        rows = kernel if fold is jbn.tools.fold_into_previous else kernel.T
        np.testing.assert_allclose(rows[0], gain, rtol=1e-6)

    def test_under_jit_and_with_gradients(self, fold):
        norm, kernel = norm_of(3), values(3, 3)
        actual = jax.jit(lambda kernel, norm: fold(kernel, None, *norm))(kernel, norm)
        for a, b in zip(actual, fold(kernel, None, *norm), strict=True):
            np.testing.assert_allclose(a, b, **tolerance("float32", 3))
        grads = jax.grad(lambda kernel: jnp.sum(fold(kernel, None, *norm)[0]))(kernel)
        gain = np.asarray(norm[0]["scale"]) / np.sqrt(np.asarray(norm[1]["var"]) + 1e-5)
        rows = grads if fold is jbn.tools.fold_into_previous else grads.T
        np.testing.assert_allclose(rows, np.tile(gain, (3, 1)), rtol=1e-6)


class TestErrors:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"kernel": jnp.ones(3)}, "`kernel` must have axes of input and output channels"),
            ({"kernel": jnp.ones((2, 3), "int32")}, "`kernel`"),
            ({"kernel": jnp.ones((2, 4))}, r"'mean' and 'var' .* \(4,\), as `kernel`"),
            ({"bias": jnp.ones(2)}, r"`bias` must be None or of shape \(3,\)"),
            ({"layout": "keras"}, "`layout` must be one of"),
            ({"groups": 2}, "`groups` must divide axis 1 of `kernel`.* of size 3, got 2"),
            ({"groups": 0}, "`groups` must divide"),
            ({"epsilon": 0.0}, "`epsilon` must be a positive"),
            ({"params": {"gamma": jnp.ones(3)}}, "`params` may hold 'scale' and 'bias'"),
            ({"params": {"scale": jnp.ones(2)}}, r"`params\['scale'\]`"),
            ({"batch_stats": {"mean": jnp.ones(3)}}, "`batch_stats` must be a mapping"),
        ],
    )
    def test_each_argument(self, change, message):
        params, stats = norm_of(3)
        given = {"kernel": jnp.ones((2, 3)), "bias": None, "params": params, "batch_stats": stats}
        with pytest.raises((ValueError, TypeError), match=message):
            jbn.tools.fold_into_previous(**{**given, **change})

    def test_a_scale_of_zero_cannot_be_padded(self):
        params, stats = norm_of(3)
        params["scale"] = jnp.array([1.0, 0.0, 0.0])
        with pytest.raises(ValueError, match=r"`params\['scale'\]` must not be 0 .* 2 of 3 channels"):
            jbn.tools.fold_padding(params, stats)
        # Where nothing is padded it does no harm.
        kernel, bias = jbn.tools.fold_into_next(jnp.ones((3, 2)), None, params, stats)
        assert not kernel[1:].any() and jnp.isfinite(bias).all()
