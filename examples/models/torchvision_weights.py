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
        ValueError: the two are not of the same network; the entry that differs is named.
    """
    placeholders = jax.tree.map(lambda v: np.zeros(v.shape, np.float32), variables)
    expected = {name: v.shape for name, v in to_torchvision(placeholders).items()}
    given = {name: np.shape(v) for name, v in state_dict.items()}
    for name in sorted(expected.keys() | given.keys()):
        # Nothing here depends on it, and the oldest files have none.
        if expected.get(name) != given.get(name) and not name.endswith("num_batches_tracked"):
            raise ValueError(
                f"`state_dict` must be of the same network as `variables`, with {name} of shape "
                f"{expected.get(name)}, got {given.get(name)}; None is where there is no such entry"
            )
    params, batch_stats = {}, {}
    for path in _modules(variables):
        name = _torch_name(path)
        if path[-1].startswith("norm"):
            params[path], batch_stats[path] = jbn.tools.from_torch(state_dict, name)
            continue
        weight = np.asarray(state_dict[f"{name}.weight"])
        kernel = weight.transpose(2, 3, 1, 0) if weight.ndim == 4 else weight.T
        params[path] = {"kernel": kernel.copy()}
        if f"{name}.bias" in state_dict:
            params[path]["bias"] = np.asarray(state_dict[f"{name}.bias"]).copy()
    return {"params": unflatten_dict(params), "batch_stats": unflatten_dict(batch_stats)}


def to_torchvision(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """A state dict of torchvision's ResNet, of NumPy arrays, for `torch.from_numpy` or safetensors."""
    trees = [flatten_dict(variables[name]) for name in ("params", "batch_stats")]
    state_dict = {}
    for path in _modules(variables):
        name = _torch_name(path)
        own, statistics = ({p[-1]: v for p, v in tree.items() if p[:-1] == path} for tree in trees)
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
    stage, index = re.findall(r"\d+", block[0])
    return f"layer{stage}.{int(index) - 1}.{SHORTCUT.get(module, module.replace('norm', 'bn'))}"
