"""The example of synchronized batch norm: three ways, one result, and what there is without it."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

ROOT = Path(__file__).parents[1]
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
NAMES = ["one device", "jax.jit", "jax.shard_map", "jax.pmap", "unsynchronized"]


@pytest.fixture
def sync(monkeypatch):
    """The example as a module."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    return importlib.import_module("sync_batch_norm")


@pytest.fixture
def digits(sync):
    return sync.data.load()


@pytest.fixture
def mesh(sync):
    return jax.make_mesh((sync.DEVICES,), (sync.AXIS,), axis_types=(AxisType.Auto,))


@pytest.mark.usefixtures("standard_promotion")
class TestRuns:
    def test_returns_and_reports_every_run(self, sync, tmp_path, capsys):
        runs = sync.main(["--epochs", "2", "--batch-size", "32", "--out", str(tmp_path / "new")])
        printed = capsys.readouterr()
        lines = printed.out.splitlines()
        for name, line in zip(NAMES[1:4], lines[1:4], strict=True):
            assert line.split() == [name, line.split()[-1]]
            assert 0 <= float(line.split()[-1]) <= 1e-5
        assert [run.name for run in runs] == NAMES
        for run, line in zip(runs, lines[5:10], strict=True):
            assert len(run.test_accuracy) == len(run.train_loss) == len(run.seconds) == 2
            assert run.train_loss[1] < run.train_loss[0]
            assert line.startswith(run.name) and f"{run.test_accuracy[-1]:.1%}" in line
        for run in runs[1:4]:
            np.testing.assert_allclose(run.train_loss, runs[0].train_loss, rtol=1e-5)
        assert abs(runs[4].train_loss[-1] - runs[0].train_loss[-1]) > 1e-3
        assert "10/10" in printed.err
        picture = (tmp_path / "new" / "sync_batch_norm.png").read_bytes()
        assert picture.startswith(PNG_MAGIC)
        assert len(picture) < 150_000

    def test_two_images_on_each_device_need_synchronization(self, sync, digits, mesh):
        start = sync.create_state(digits.train_images, seed=0)
        step, merge = sync.unsynchronized(mesh, 0.01)
        each = jax.tree.map(lambda v: jnp.stack([v] * sync.DEVICES), start.batch_stats)
        state = start._replace(batch_stats=each)
        synced = sync.synchronized(mesh, 0.01)["jax.shard_map"]
        images, labels = digits.train_images[:16], digits.train_labels[:16]
        state, loss = jax.block_until_ready(step(state, images, labels))
        _, synced_loss = jax.block_until_ready(synced(start, images, labels))
        assert abs(loss - synced_loss) > 0.01
        # Each device has statistics of its own, until they are merged.
        layer = jax.device_get(state.batch_stats["BatchNorm_0"])
        merged = jax.device_get(merge(state).batch_stats["BatchNorm_0"])
        assert np.ptp(layer["mean"], axis=0).max() > 1e-3
        np.testing.assert_allclose(merged["mean"], layer["mean"].mean(0), rtol=1e-5, atol=1e-6)
        wanted = layer["var"].mean(0) + layer["mean"].var(0)
        np.testing.assert_allclose(merged["var"], wanted, rtol=1e-5)

    def test_a_way_with_other_numbers_is_an_error(self, sync, digits, capsys):
        def step(state, images, labels, shift=0.0):
            return state, jnp.float32(images.mean() + shift)

        ways = {"first": step, "second": lambda *args: step(*args, shift=1e-3)}
        start = sync.create_state(digits.train_images, seed=0)
        with pytest.raises(SystemExit, match="second: expected a difference of at most 1e-05, got 0"):
            sync.compare(ways, start, digits, np.arange(8).reshape(2, 4))
        assert "second         1.0e-03" in capsys.readouterr().out

    def test_a_way_with_nan_is_an_error(self, sync, digits):
        ways = {name: lambda state, *_, v=v: (state, v) for name, v in (("a", 1.0), ("b", np.nan))}
        start = sync.create_state(digits.train_images, seed=0)
        with pytest.raises(SystemExit, match="got nan"):
            sync.compare(ways, start, digits, np.arange(8).reshape(2, 4))


class TestDevices:
    @pytest.mark.parametrize(
        ("flags", "wanted"),
        [
            ("", "--xla_force_host_platform_device_count=8"),
            ("--other=1", "--other=1 --xla_force_host_platform_device_count=8"),
            ("--xla_force_host_platform_device_count=9", "--xla_force_host_platform_device_count=9"),
        ],
    )
    def test_asks_for_eight_unless_told_otherwise(self, sync, flags, wanted, monkeypatch):
        monkeypatch.setenv("XLA_FLAGS", flags)
        assert len(sync.host_devices()) == 8
        assert os.environ["XLA_FLAGS"].strip() == wanted

    def test_too_few_give_one_line(self, sync, monkeypatch):
        monkeypatch.setattr(jax, "devices", lambda kind: [kind] * 2)
        with pytest.raises(SystemExit, match="expected 8 devices, got 2: leave --xla_force_"):
            sync.host_devices()

    @pytest.mark.slow
    def test_as_a_script_it_makes_its_devices_and_shows_the_difference(self, tmp_path):
        environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
        command = [sys.executable, "-W", "error", "examples/sync_batch_norm.py", "--out", tmp_path]
        shown = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=True
        ).stdout
        rows = {name: line for line in shown.splitlines() for name in NAMES if line.startswith(name)}
        accuracy = {name: float(line.removeprefix(name).split()[1][:-1]) for name, line in rows.items()}
        assert min(accuracy[name] for name in NAMES[:4]) >= 96
        assert accuracy["unsynchronized"] <= 90


class TestFlags:
    def test_help_as_a_script(self):
        command = [sys.executable, "examples/sync_batch_norm.py", "--help"]
        shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for flag in ("epochs", "batch-size", "learning-rate", "seed", "data-dir", "out"):
            assert f"--{flag}" in shown
        assert "of SGD" in shown and "Adam" not in shown

    @pytest.mark.parametrize(
        ("flag", "value", "message"),
        [
            ("--epochs", "0", "must be a whole number, at least 1, got 0"),
            ("--batch-size", "1", "must be a whole number, at least 2, got 1"),
            (
                "--batch-size",
                "180",
                "must be at most 179, the number of training images for each of 8 devices, got 180",
            ),
            ("--learning-rate", "fast", "must be a positive number, got fast"),
            ("--data-dir", "absent", "absent: expected a folder with MNIST's IDX files, found none"),
        ],
    )
    def test_wrong_value_gives_one_line(
        self, sync, flag, value, message, tmp_path, monkeypatch, capsys
    ):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit) as exit_info:
            sync.main([f"{flag}={value}"])
        assert exit_info.value.code == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.endswith(f"error: argument {flag}: {message}")
