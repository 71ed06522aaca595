"""The example of synchronized batch norm: three ways, one result, and what there is without it."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from gallery import ROOT, example, quick_compilation, run  # noqa: F401

NAMES = ["one device", "jax.jit", "jax.shard_map", "jax.pmap", "unsynchronized"]


@pytest.fixture
def sync():
    """The example as a module."""
    return example("sync_batch_norm")


@pytest.fixture
def digits(sync):
    return sync.data.load()


@pytest.fixture
def mesh(sync):
    return jax.make_mesh((sync.DEVICES,), (sync.AXIS,), axis_types=(AxisType.Auto,))


@pytest.mark.usefixtures("standard_promotion")
class TestRuns:
    def test_returns_and_reports_every_run(self, sync, tmp_path, capsys):
        runs = run("sync_batch_norm", tmp_path / "new", "--epochs", "1", "--batch-size", "32")
        printed = capsys.readouterr()
        lines = printed.out.splitlines()
        for name, line in zip(NAMES[1:4], lines[1:4], strict=True):
            assert line.split() == [name, line.split()[-1]]
            assert 0 <= float(line.split()[-1]) <= 1e-5
        assert [one.name for one in runs] == NAMES
        for one, line in zip(runs, lines[5:10], strict=True):
            assert len(one.test_accuracy) == len(one.train_loss) == len(one.seconds) == 1
            assert np.isfinite(one.train_loss).all()
            assert line.startswith(one.name) and f"{one.test_accuracy[-1]:.1%}" in line
        for one in runs[1:4]:
            np.testing.assert_allclose(one.train_loss, runs[0].train_loss, rtol=1e-5)
        assert abs(runs[4].train_loss[-1] - runs[0].train_loss[-1]) > 1e-3
        assert "5/5" in printed.err

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


def test_help_names_the_optimizer(sync, capsys):
    with pytest.raises(SystemExit):
        sync.main(["--help"])
    shown = capsys.readouterr().out
    assert "of SGD" in shown and "Adam" not in shown
