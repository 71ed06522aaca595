"""The first example runs and says what it did; all of them answer a wrong flag with one line."""

from pathlib import Path

import jax
import numpy as np
import pytest

from gallery import ROOT, example, quick_compilation, run, write_mnist  # noqa: F401

SEVERAL_SEEDS = (
    "covariate_shift",
    "fine_tune",
    "functional_mlp",
    "imbalanced",
    "multi_task",
    "raw_pixels",
    "resnet",
    "rnn",
    "small_batches",
)
NAMES = ("digits_cnn", "multiprocess", "sync_batch_norm", *SEVERAL_SEEDS)
COMMON = ("--epochs", "--batch-size", "--learning-rate", "--seed", "--data-dir", "--out")


@pytest.mark.usefixtures("standard_promotion")
class TestRuns:
    def test_returns_and_reports_every_run(self, tmp_path, monkeypatch, capsys):
        data = example("data")
        few = data.Digits(*(part[:256] for part in data.load()))
        monkeypatch.setattr(data, "load", lambda _: few)
        runs = run("digits_cnn", tmp_path / "new" / "out", "--epochs", "2", "--batch-size", "64")
        printed = capsys.readouterr()
        assert len(runs) == 4
        lines = printed.out.splitlines()
        for one, line in zip(runs, lines[1:], strict=False):
            assert len(one.test_accuracy) == len(one.train_loss) == len(one.seconds) == 2
            assert np.isfinite(one.train_loss).all()
            assert one.train_loss[1] < one.train_loss[0]
            assert line.startswith(one.name)
            assert f"{one.learning_rate:g}" in line and f"{one.test_accuracy[-1]:.1%}" in line
        assert "8/8" in printed.err
        accuracy = f"{runs[0].test_accuracy[-1]:.2%}"
        assert lines[-1].endswith(f"test accuracy {accuracy} saved, {accuracy} reloaded")

    def test_checkpoint_restores_everything(self, tmp_path):
        cnn, training = example("digits_cnn"), example("linen_training")
        digits = example("data").load()
        # The shapes of the run above, so that its compiled step is this one's.
        images, labels = digits.train_images[:64], digits.train_labels[:64]
        state = training.create_state(cnn.CNN(True), images, seed=0)
        state, _ = training.train_step(state, images, labels, model=cnn.CNN(True), learning_rate=1e-3)
        cnn.save(state, tmp_path / "state")
        fresh = training.create_state(cnn.CNN(True), images, seed=1)
        jax.tree.map(np.testing.assert_array_equal, cnn.restore(fresh, tmp_path / "state"), state)

    @pytest.mark.slow
    def test_digits_cnn_reaches_98_percent(self, tmp_path):
        runs = run("digits_cnn", tmp_path)
        assert runs[0].name == "batch norm"
        assert runs[0].test_accuracy[-1] >= 0.98


class TestFlags:
    def test_every_example_is_here(self):
        scripts = {
            path.stem for path in (ROOT / "examples").glob("*.py") if "__main__" in path.read_text()
        }
        assert scripts == set(NAMES)

    @pytest.mark.parametrize("name", NAMES)
    def test_help(self, name, capsys):
        with pytest.raises(SystemExit) as exit_info:
            example(name).main(["--help"])
        assert exit_info.value.code == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert all(flag in shown for flag in COMMON)
        assert ("--seeds N" in shown) == (name in SEVERAL_SEEDS)
        assert ("the first of the seeds" in shown) == (name in SEVERAL_SEEDS)
        repeated = "every run is repeated at ten times this rate" in shown
        assert repeated == (name in ("digits_cnn", "resnet", "rnn"))
        assert example(name).__doc__.count(f"python examples/{name}.py") >= 1

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize(
        ("flag", "value", "message"),
        [
            ("--epochs", "0", "must be a whole number, at least 1, got 0"),
            ("--epochs", "2.5", "must be a whole number, at least 1, got 2.5"),
            ("--batch-size", "1", "must be a whole number, at least 2, got 1"),
            ("--learning-rate", "-1", "must be a positive number, got -1"),
            ("--learning-rate", "nan", "must be a positive number, got nan"),
            ("--learning-rate", "1e308", "must be a positive number, got 1e308"),
            ("--learning-rate", "fast", "must be a positive number, got fast"),
            ("--seed", "-1", "must be a whole number, from 0 to 4294966296, got -1"),
            ("--data-dir", "absent", "absent: expected a folder with MNIST's IDX files, found none"),
            ("--out", "file", "cannot make the folder file: File exists"),
        ],
    )
    def test_wrong_value_gives_one_line(
        self, name, flag, value, message, tmp_path, monkeypatch, capsys
    ):
        monkeypatch.chdir(tmp_path)
        Path("file").touch()
        refuses(name, [f"{flag}={value}"], f"argument {flag}: {message}", capsys)

    @pytest.mark.parametrize("name", [name for name in NAMES if name != "sync_batch_norm"])
    def test_batch_larger_than_the_data(self, name, tmp_path, capsys):
        message = "argument --batch-size: must be at most 1437, the number of training images, got 2000"
        refuses(name, ["--batch-size=2000", f"--out={tmp_path}"], message, capsys)

    def test_batch_larger_than_each_device_s_share(self, tmp_path, capsys):
        limit = "at most 179, the number of training images for each of 8 devices"
        message = f"argument --batch-size: must be {limit}, got 180"
        refuses("sync_batch_norm", ["--batch-size=180", f"--out={tmp_path}"], message, capsys)

    @pytest.mark.parametrize(("name", "limit"), [("fine_tune", "50"), ("imbalanced", "398")])
    def test_batch_larger_than_the_images_it_takes(self, name, limit, tmp_path, capsys):
        message = f"argument --batch-size: must be at most {limit}, the number of images here, got 1000"
        refuses(name, ["--batch-size=1000", f"--out={tmp_path}"], message, capsys)

    @pytest.mark.parametrize("name", SEVERAL_SEEDS)
    @pytest.mark.parametrize("value", ["0", "1001", "many"])
    def test_wrong_number_of_seeds(self, name, value, capsys):
        message = f"argument --seeds: must be a whole number, from 1 to 1000, got {value}"
        refuses(name, [f"--seeds={value}"], message, capsys)

    def test_damaged_data_gives_one_line(self, tmp_path, capsys):
        write_mnist(tmp_path)
        (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(b"<html>")
        with pytest.raises(SystemExit):
            example("digits_cnn").main(["--data-dir", str(tmp_path)])
        last = capsys.readouterr().err.splitlines()[-1]
        assert "t10k-labels-idx1-ubyte: expected an IDX file of unsigned bytes with 1 axes" in last


def refuses(name, flags, message, capsys):
    """The example leaves, and its last line is the message."""
    with pytest.raises(SystemExit) as exit_info:
        example(name).main(flags)
    assert exit_info.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"error: {message}")


class TestRun:
    @pytest.mark.parametrize(
        ("accuracies", "epochs"),
        [([0.97, 0.9], 1), ([0.5, 0.96, 0.98], 3), ([0.5], None)],
    )
    def test_epochs_to_goal(self, accuracies, epochs):
        report = example("report")
        run = report.Run("name", 0.1, accuracies, [], [1.0])
        assert run.epochs_to_goal == epochs
        assert str(epochs or "never") in report.table([run]).splitlines()[1]

    @pytest.mark.parametrize(("seconds", "median"), [([9.0], 9.0), ([9.0, 1.0, 3.0, 2.0], 2.0)])
    def test_seconds_leave_out_the_compiling_epoch(self, seconds, median):
        assert example("report").Run("name", 0.1, [], [], seconds).seconds_per_epoch == median
