"""Checkpoints as Flax, Orbax and NumPy write them, and files that are none."""

import shutil
from pathlib import Path

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx, serialization, traverse_util
from flax.training import checkpoints
from flax.training.train_state import TrainState

import jbn
from jbn.tools.inspection.checkpoint import read_checkpoint
from jbn.tools.norm_variables import norm_layers

PARAMS, STATS = jbn.init(3)
STATS = {**STATS, "mean": jnp.array([1.0, 2.0, 3.0])}
VARIABLES = {
    "params": {"block": {"norm": PARAMS}, "dense": {"kernel": jnp.ones((3, 3))}},
    "batch_stats": {"block": {"norm": STATS}},
}


def only_layer(path):
    """The layer that the checkpoint has: its path and arrays."""
    ((layer, arrays),) = norm_layers(read_checkpoint(path)).items()
    return layer, arrays


def holds_the_layer(path, *prefix):
    layer, arrays = only_layer(path)
    assert layer == (*prefix, "batch_stats", "block", "norm")
    assert list(arrays) == ["mean", "var", "scale", "bias"]
    np.testing.assert_array_equal(arrays["mean"], STATS["mean"])
    assert all(isinstance(v, np.ndarray) for v in arrays.values())


@pytest.mark.parametrize("separator", ["/", "."])
def test_npz(separator, tmp_path):
    flat = traverse_util.flatten_dict(VARIABLES, sep=separator)
    np.savez(tmp_path / "a.npz", names=np.array([None, "x"]), **flat)
    holds_the_layer(tmp_path / "a.npz")


class TestMsgpack:
    def test_variables(self, tmp_path):
        (tmp_path / "a").write_bytes(serialization.to_bytes(VARIABLES))
        holds_the_layer(tmp_path / "a")

    def test_a_train_state(self, tmp_path):
        class State(TrainState):
            batch_stats: dict

        fields = {"apply_fn": None, "tx": optax.adam(0.1), "params": VARIABLES["params"]}
        state = State.create(**fields, batch_stats=VARIABLES["batch_stats"])
        (tmp_path / "a").write_bytes(serialization.to_bytes(state))
        holds_the_layer(tmp_path / "a")

    def test_bfloat16(self, tmp_path):
        (tmp_path / "a").write_bytes(
            serialization.to_bytes({**PARAMS, **STATS, "mean": jnp.zeros(3, "bfloat16")})
        )
        _, arrays = only_layer(tmp_path / "a")
        assert arrays["mean"].dtype == jnp.bfloat16
        assert jbn.tools.report(read_checkpoint(tmp_path / "a")).layers[0].stale == 3

    @pytest.mark.filterwarnings("ignore:Flax Checkpointing will soon:DeprecationWarning")
    def test_the_last_of_those_that_flax_saved(self, tmp_path):
        with flax.config.temp_flip_flag("use_orbax_checkpointing", False):
            for step in (9, 10):
                stats = {**STATS, "mean": STATS["mean"] * float(step == 10)}
                tree = {**VARIABLES, "batch_stats": {"block": {"norm": stats}}}
                checkpoints.save_checkpoint(tmp_path, tree, step, keep=2)
        holds_the_layer(tmp_path)


class TestOrbax:
    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, tmp_path_factory):
        folder = tmp_path_factory.mktemp("orbax")
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(folder / "one", VARIABLES)
        with ocp.CheckpointManager(folder / "steps") as manager:
            for step in (3, 10):
                stats = jax.tree.map(
                    lambda v, step=step: v * float(step == 10), VARIABLES["batch_stats"]
                )
                tree = {**VARIABLES, "batch_stats": stats}
                manager.save(step, args=ocp.args.StandardSave(tree))
        with ocp.CheckpointManager(folder / "items") as manager:
            save = {name: ocp.args.StandardSave(tree) for name, tree in VARIABLES.items()}
            manager.save(7, args=ocp.args.Composite(**save, notes=ocp.args.JsonSave({"a": 1})))
        return folder

    @pytest.mark.parametrize(
        "path", ["one", "steps", "steps/10", "steps/10/default", "items", "items/7"]
    )
    def test_a_checkpoint_a_step_and_the_last_of_several(self, folder, path, monkeypatch):
        holds_the_layer(folder / path)
        monkeypatch.chdir(folder)
        holds_the_layer(Path(path))

    def test_another_step(self, folder):
        np.testing.assert_array_equal(only_layer(folder / "steps/3")[1]["mean"], 0)

    def test_other_arrays_are_not_read(self, folder):
        assert read_checkpoint(folder / "one")["params"]["dense"]["kernel"] is ...

    @pytest.mark.parametrize("pure", [False, True])
    def test_nnx(self, pure, tmp_path):
        model = nnx.List([nnx.Linear(3, 3, rngs=nnx.Rngs(0)), jbn.nnx.BatchNorm(3, rngs=nnx.Rngs(0))])
        state = nnx.state(model)
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(tmp_path / "a", nnx.to_pure_dict(state) if pure else state)
        layer, arrays = only_layer(tmp_path / "a")
        assert layer == ("1",) and list(arrays) == ["mean", "var", "scale", "bias"]

    def test_damaged(self, folder, tmp_path):
        damaged = shutil.copytree(folder / "one", tmp_path / "damaged")
        (damaged / "_METADATA").write_text("{")
        with pytest.raises(ValueError, match="no checkpoint that can be read, of "):
            read_checkpoint(damaged)


class TestNoCheckpoint:
    def test_missing(self, tmp_path):
        with pytest.raises(OSError, match=r"No such file or directory: .*/none"):
            read_checkpoint(tmp_path / "none")

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"", "Unpack failed: incomplete input"),
            (serialization.to_bytes(VARIABLES)[:200], "Unpack failed: incomplete input"),
            (b"a text", "unpack"),
            (b"\x07", "expected a mapping in Flax's msgpack, got int"),
            (b"PK\x03\x04 and no more", "File is not a zip file"),
        ],
        ids=["empty", "truncated", "text", "number", "zip"],
    )
    def test_content(self, content, reason, tmp_path):
        (tmp_path / "a").write_bytes(content)
        with pytest.raises(ValueError, match=f"^no checkpoint that can be read, of .*: .*{reason}"):
            read_checkpoint(tmp_path / "a")

    def test_an_empty_directory(self, tmp_path):
        with pytest.raises(
            ValueError, match=r"can be read, of .*: a directory without the _METADATA of Orbax"
        ):
            read_checkpoint(tmp_path)
