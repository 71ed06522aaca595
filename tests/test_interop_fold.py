"""Folding against PyTorch's own: the same kernels, and right where PyTorch's are wrong."""

import copy

import jax.numpy as jnp
import numpy as np
import pytest

import jbn
from tolerance import tolerance

torch = pytest.importorskip("torch")
fusion = pytest.importorskip("torch.nn.utils.fusion")

CASES = {
    "conv1d": (torch.nn.Conv1d(4, 6, 3), (2, 4, 9)),
    "conv2d": (torch.nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False), (2, 4, 9, 9)),
    "grouped": (torch.nn.Conv2d(4, 6, 3, groups=2, dilation=2), (2, 4, 9, 9)),
    "depthwise": (torch.nn.Conv2d(4, 8, 3, groups=4), (2, 4, 9, 9)),
    "conv3d": (torch.nn.Conv3d(4, 6, 2), (2, 4, 3, 3, 3)),
    "linear": (torch.nn.Linear(4, 6), (5, 4)),
    "transposed": (torch.nn.ConvTranspose2d(4, 6, 3, stride=2), (2, 4, 5, 5)),
}
GROUPED_TRANSPOSED = {
    "2 groups": torch.nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False),
    "depthwise": torch.nn.ConvTranspose2d(4, 4, 3, groups=4),
}


def trained_norm(channels, rank, seed=0):
    """A batch norm in evaluation, with random statistics and parameters."""
    norm = getattr(torch.nn, f"BatchNorm{max(rank, 1)}d")(channels).eval()
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name in ("weight", "bias", "running_mean"):
            getattr(norm, name).copy_(torch.tensor(rng.normal(size=channels)))
        norm.running_var.copy_(torch.tensor(rng.uniform(0.2, 3, channels)))
    return norm


def folded(layer, norm):
    """A copy of the layer with the norm in it, by jbn."""
    arrays = {name: jnp.asarray(v.numpy()) for name, v in norm.state_dict().items()}
    transposed = isinstance(layer, torch.nn.ConvTranspose2d)
    kernel, bias = jbn.tools.fold_into_previous(
        jnp.asarray(layer.weight.detach().numpy()),
        None if layer.bias is None else jnp.asarray(layer.bias.detach().numpy()),
        {"scale": arrays["weight"], "bias": arrays["bias"]},
        {"mean": arrays["running_mean"], "var": arrays["running_var"]},
        epsilon=norm.eps,
        layout="torch_transposed" if transposed else "torch",
        groups=getattr(layer, "groups", 1),
    )
    new = copy.deepcopy(layer)
    new.weight, new.bias = (torch.nn.Parameter(torch.tensor(np.array(v))) for v in (kernel, bias))
    return new


def close(actual, expected):
    size = expected.abs().max()
    np.testing.assert_allclose(actual / size, expected / size, **tolerance("float32", 36))


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_as_pytorch_s_and_as_layer_and_norm(name):
    layer, shape = CASES[name]
    x = torch.tensor(np.random.default_rng(1).normal(size=shape), dtype=torch.float32)
    norm = trained_norm(layer.weight.shape[name == "transposed"], len(shape) - 2)
    ours = folded(layer.eval(), norm)
    close(ours(x), norm(layer(x)))
    if name == "linear":
        theirs = fusion.fuse_linear_bn_eval(layer, norm)
    else:
        theirs = fusion.fuse_conv_bn_eval(layer, norm, transpose=name == "transposed")
    close(ours.weight, theirs.weight)
    close(ours.bias, theirs.bias)


@torch.no_grad()
@pytest.mark.parametrize("name", GROUPED_TRANSPOSED)
def test_grouped_and_transposed_as_layer_and_norm(name):
    layer = GROUPED_TRANSPOSED[name].eval()
    x = torch.tensor(np.random.default_rng(1).normal(size=(2, 4, 5, 5)), dtype=torch.float32)
    norm = trained_norm(layer.out_channels, 2)
    close(folded(layer, norm)(x), norm(layer(x)))


def by_pytorch(layer, norm, x):
    return fusion.fuse_conv_bn_eval(layer, norm, transpose=True)(x)


@pytest.mark.parametrize("name", GROUPED_TRANSPOSED)
def test_pytorch_cannot_do_that(name):
    """It takes axis 1, the outputs of one group, for those of all."""
    layer = GROUPED_TRANSPOSED[name].eval()
    with pytest.raises(RuntimeError, match=r"size of tensor|expected bias"):
        by_pytorch(layer, trained_norm(layer.out_channels, 2), torch.zeros(2, 4, 5, 5))
