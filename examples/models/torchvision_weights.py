"""Weights of torchvision's ResNets in the networks of resnet.py, and the way back.

    model = resnet50(classes=1000, small_images=False)
    variables = jax.eval_shape(functools.partial(model.init, train=False), key, images)
    variables = from_torchvision(safetensors.numpy.load_file("resnet50.safetensors"), variables)
    logits = model.apply(variables, images, train=False)

Both have the same layout: the stride on the 3x3 convolution, padding at both ends, epsilon 1e-5. Images
are (N, H, W, C) here, and kernels (height, width, in, out), PyTorch's (out, in, height, width). For
going on with the training as there, the model takes `norm=functools.partial(jbn.linen.BatchNorm,
momentum=0.9, running_variance="unbiased")`.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

import jbn

OUTER = {"conv": "conv1", "norm": "bn1", "output": "fc"}
SHORTCUT = {"conv_shortcut": "downsample.0", "norm_shortcut": "downsample.1"}


def from_torchvision(state_dict: Mapping[str, Any], variables: Mapping[str, Any]) -> dict[str, Any]:
    """The variables of a network of resnet.py, from a state dict of NumPy arrays or tensors.

    Args:
        state_dict: of the torchvision network with the same depth and number of classes.
        variables: those of `model.init`, or their shapes by `jax.eval_shape`.

    Raises:
        ValueError: the two are not of the same network; the entries that differ are named.
    """
    modules = {_torch_name(path): path for path in _modules(variables)}
    given = {entry.rpartition(".")[0] for entry in state_dict}
    if given != modules.keys():
        raise ValueError(
            f"`state_dict` must be of the same network as `variables`, but lacks "
            f"{sorted(modules.keys() - given)[:5]} and has {sorted(given - modules.keys())[:5]} besides"
        )
    params, batch_stats = {}, {}
    for name, path in modules.items():
        if path[-1].startswith("norm"):
            params[path], batch_stats[path] = jbn.tools.from_torch(state_dict, name)
        else:
            weight = np.asarray(state_dict[f"{name}.weight"])
            params[path] = {"kernel": weight.transpose(2, 3, 1, 0) if weight.ndim == 4 else weight.T}
            if path[-1] == "output":
                params[path]["bias"] = np.asarray(state_dict[f"{name}.bias"])
    result = {"params": unflatten_dict(params), "batch_stats": unflatten_dict(batch_stats)}
    expected = flatten_dict(
        jax.tree.map(np.shape, variables), is_leaf=lambda _, v: isinstance(v, tuple)
    )
    for path, value in flatten_dict(result).items():
        if expected.get(path) != value.shape:
            raise ValueError(
                f"`state_dict` must be of the same network as `variables`, whose {'/'.join(path)} has "
                f"shape {expected.get(path)}, got {value.shape}"
            )
    return result


def to_torchvision(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """A state dict of torchvision's ResNet, of NumPy arrays, for `torch.from_numpy` or safetensors."""
    params, batch_stats = (flatten_dict(variables[name]) for name in ("params", "batch_stats"))
    state_dict = {}
    for path in _modules(variables):
        name = _torch_name(path)
        own, statistics = (
            {leaf[-1]: v for leaf, v in tree.items() if leaf[:-1] == path}
            for tree in (params, batch_stats)
        )
        if path[-1].startswith("norm"):
            state_dict.update(jbn.tools.to_torch(own, statistics, name))
            continue
        kernel = np.asarray(own["kernel"])
        kernel = kernel.transpose(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T
        state_dict[f"{name}.weight"] = np.ascontiguousarray(kernel)
        if "bias" in own:
            state_dict[f"{name}.bias"] = np.array(own["bias"])
    return state_dict


def _modules(variables):
    """The paths of the layers, in order."""
    return dict.fromkeys(path[:-1] for path in flatten_dict(variables["params"]))


def _torch_name(path):
    """`("stage1_block2", "norm3")` is "layer1.1.bn3"."""
    *block, module = path
    if not block:
        return OUTER[module]
    stage, index = re.fullmatch(r"stage(\d+)_block(\d+)", block[0]).groups()
    return f"layer{stage}.{int(index) - 1}.{SHORTCUT.get(module, module.replace('norm', 'bn'))}"
