"""What of a checkpoint file concerns batch norm: Flax's msgpack, Orbax's directories, NumPy's npz."""

import contextlib
import io
import re
import textwrap
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import serialization, traverse_util

from jbn.tools.norm_variables import AFFINE, STATISTICS, names

ARRAYS = (*STATISTICS, *AFFINE)
ZIP = b"PK\x03\x04"
ORBAX = "_METADATA"


def read_checkpoint(path: Path) -> Any:
    """The tree in a checkpoint; of Orbax's, whose leaves are files, only those that batch norm has.

    Args:
        path: a file that Flax's `to_bytes` or `numpy.savez` wrote, the latter with "/" or "." between
            the names; or a directory of Orbax, a checkpoint or a step; or of steps, then of the last.

    Raises:
        OSError: there is no such file, or it may not be read.
        ValueError: it is no checkpoint, or a damaged one.
    """
    try:
        return _read(path)
    except OSError:
        raise
    # Each reader has errors of its own for what is no file of its kind.
    except Exception as error:
        reason = textwrap.shorten(str(error) or type(error).__name__, 200)
        raise ValueError(
            f"no checkpoint that can be read, of Flax's msgpack, NumPy's npz or Orbax: {reason}"
        ) from error


def _read(path):
    if path.is_dir():
        return _directory(path)
    content = path.read_bytes()
    return _npz(content) if content.startswith(ZIP) else _msgpack(content)


def _msgpack(content):
    tree = serialization.msgpack_restore(content)
    if not isinstance(tree, dict):
        raise ValueError(f"expected a mapping in Flax's msgpack, got {type(tree).__name__}")
    return tree


def _npz(content):
    with np.load(io.BytesIO(content)) as file:
        paths = {key: tuple(re.split(r"[/.]", key)) for key in file.files}
        flat = {path: file[key] for key, path in paths.items() if path[-1] in ARRAYS}
    return traverse_util.unflatten_dict(flat)


def _directory(path):
    if (path / ORBAX).exists():
        return _orbax_tree(path.absolute())
    numbers = {child: re.fullmatch(r"(?:.*_)?(\d+)", child.name) for child in path.iterdir()}
    steps = {int(number[1]): child for child, number in numbers.items() if number}
    if steps:
        return _read(steps[max(steps)])
    items = {
        child.name: _orbax_tree(child.absolute())
        for child in path.iterdir()
        if (child / ORBAX).exists()
    }
    if not items:
        raise ValueError(f"a directory without the {ORBAX} of Orbax")
    return items if len(items) > 1 else next(iter(items.values()))


def _orbax_tree(path):
    import orbax.checkpoint as ocp

    with contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
        metadata = handler.metadata(path).tree
        wanted = jax.tree.map_with_path(
            lambda key_path, leaf: leaf if names(key_path)[-1] in ARRAYS else ocp.PLACEHOLDER, metadata
        )
        # As NumPy's arrays: not on the devices they were saved from.
        options = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), metadata)
        return handler.restore(path, args=ocp.args.PyTreeRestore(item=wanted, restore_args=options))
