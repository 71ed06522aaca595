"""The examples run, say what they did, and answer a wrong flag with one line."""

import gzip
import importlib
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
NAMES = ("digits_cnn", "functional_mlp")
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
BATCH = 256


@pytest.fixture
def example(monkeypatch):
    """Imports a file of the examples' folder."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    return importlib.import_module


def idx(array):
    """An array of bytes as MNIST stores it."""
    sizes = np.array(array.shape, ">u4").tobytes()
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def write_mnist(folder, train=96, test=20, pixels=(6, 5), compress=False):
    """Writes four small files in MNIST's format; returns what is in them."""
    rng = np.random.default_rng(0)
    arrays = {}
    for part, size in (("train", train), ("t10k", test)):
        arrays[f"{part}-images-idx3-ubyte"] = rng.integers(256, size=(size, *pixels))
        arrays[f"{part}-labels-idx1-ubyte"] = rng.integers(10, size=size)
    for name, array in arrays.items():
        if compress:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
        else:
            (folder / name).write_bytes(idx(array))
    return arrays


@pytest.mark.usefixtures("standard_promotion")
class TestRuns:
    @pytest.mark.parametrize("name", NAMES)
    def test_returns_and_reports_every_run(self, example, name, tmp_path, capsys):
        flags = ["--epochs", "2", "--batch-size", str(BATCH), "--out", str(tmp_path / "new" / "out")]
        runs = example(name).main(flags)
        printed = capsys.readouterr()
        assert len(runs) == 4
        lines = printed.out.splitlines()
        for run, line in zip(runs, lines[1:], strict=False):
            assert len(run.test_accuracy) == len(run.train_loss) == len(run.seconds) == 2
            assert np.isfinite(run.train_loss).all()
            assert run.train_loss[1] < run.train_loss[0]
            assert line.startswith(run.name)
            assert f"{run.learning_rate:g}" in line and f"{run.test_accuracy[-1]:.1%}" in line
        assert "8/8" in printed.err
        picture = (tmp_path / "new" / "out" / f"{name}.png").read_bytes()
        assert picture.startswith(PNG_MAGIC)
        assert len(picture) < 150_000

    def test_same_seed_same_runs(self, example, tmp_path):
        main = example("functional_mlp").main
        flags = ["--epochs", "1", "--batch-size", str(BATCH), "--out", str(tmp_path), "--seed"]
        first, again, other = (
            [run.train_loss for run in main([*flags, seed])] for seed in ("3", "3", "4")
        )
        assert first == again != other

    def test_averages_see_the_same_training(self, example, tmp_path):
        flags = ["--epochs", "1", "--batch-size", str(BATCH), "--out", str(tmp_path)]
        runs = example("functional_mlp").main(flags)
        np.testing.assert_allclose(runs[0].train_loss, runs[1].train_loss, rtol=1e-4)
        assert runs[0].test_accuracy != runs[1].test_accuracy

    def test_checkpoint_restores_everything(self, example, tmp_path):
        cnn, digits = example("digits_cnn"), example("data").load()
        images, labels = digits.train_images[:8], digits.train_labels[:8]
        state = cnn.create_state(cnn.CNN(True), images, seed=0)
        state, _ = cnn.train_step(state, images, labels, model=cnn.CNN(True), learning_rate=1e-3)
        cnn.save(state, tmp_path / "state")
        fresh = cnn.create_state(cnn.CNN(True), images, seed=1)
        jax.tree.map(np.testing.assert_array_equal, cnn.restore(fresh, tmp_path / "state"), state)

    def test_checkpoint_line_gives_equal_accuracies(self, example, tmp_path, capsys):
        flags = ["--epochs", "1", "--batch-size", str(BATCH), "--out", str(tmp_path)]
        runs = example("digits_cnn").main(flags)
        accuracy = f"{runs[0].test_accuracy[-1]:.2%}"
        expected = f"test accuracy {accuracy} saved, {accuracy} reloaded"
        assert capsys.readouterr().out.splitlines()[-1].endswith(expected)

    def test_reads_a_folder_of_mnist_files(self, example, tmp_path):
        write_mnist(tmp_path, compress=True)
        flags = ["--epochs", "1", "--data-dir", str(tmp_path), "--out", str(tmp_path)]
        runs = example("functional_mlp").main(flags)
        assert all(0 <= run.test_accuracy[0] <= 1 for run in runs)

    @pytest.mark.slow
    def test_digits_cnn_reaches_98_percent(self, example, tmp_path):
        runs = example("digits_cnn").main(["--out", str(tmp_path)])
        assert runs[0].name == "batch norm"
        assert runs[0].test_accuracy[-1] >= 0.98


class TestFlags:
    @pytest.mark.parametrize("name", NAMES)
    def test_help_as_a_script(self, name):
        command = [sys.executable, f"examples/{name}.py", "--help"]
        shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for flag in ("epochs", "batch-size", "learning-rate", "seed", "data-dir", "out"):
            assert f"--{flag}" in shown

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize(
        ("flag", "value", "message"),
        [
            ("--epochs", "0", "must be a whole number, at least 1, got 0"),
            ("--epochs", "2.5", "must be a whole number, at least 1, got 2.5"),
            ("--batch-size", "1", "must be a whole number, at least 2, got 1"),
            ("--batch-size", "2000", "must be at most 1437, the number of training images, got 2000"),
            ("--learning-rate", "-1", "must be a positive number, got -1"),
            ("--learning-rate", "nan", "must be a positive number, got nan"),
            ("--learning-rate", "1e308", "must be a positive number, got 1e308"),
            ("--learning-rate", "fast", "must be a positive number, got fast"),
            ("--seed", "-1", "must be a whole number, from 0 to 4294967295, got -1"),
            ("--data-dir", "absent", "absent: expected a folder with MNIST's IDX files, found none"),
            ("--out", "file", "cannot make the folder file: File exists"),
        ],
    )
    def test_wrong_value_gives_one_line(
        self, example, name, flag, value, message, tmp_path, monkeypatch, capsys
    ):
        monkeypatch.chdir(tmp_path)
        Path("file").touch()
        with pytest.raises(SystemExit) as exit_info:
            example(name).main([f"{flag}={value}"])
        assert exit_info.value.code == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.endswith(f"error: argument {flag}: {message}")

    def test_damaged_data_gives_one_line(self, example, tmp_path, capsys):
        write_mnist(tmp_path)
        (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(b"<html>")
        with pytest.raises(SystemExit):
            example("report").setup(["--data-dir", str(tmp_path)], "")
        last = capsys.readouterr().err.splitlines()[-1]
        assert "t10k-labels-idx1-ubyte: expected an IDX file of unsigned bytes with 1 axes" in last


class TestRun:
    @pytest.mark.parametrize(
        ("accuracies", "epochs"),
        [([0.97, 0.9], 1), ([0.5, 0.96, 0.98], 3), ([0.5], None)],
    )
    def test_epochs_to_goal(self, example, accuracies, epochs):
        report = example("report")
        run = report.Run("name", 0.1, accuracies, [], [1.0])
        assert run.epochs_to_goal == epochs
        assert str(epochs or "never") in report.table([run]).splitlines()[1]

    @pytest.mark.parametrize(("seconds", "median"), [([9.0], 9.0), ([9.0, 1.0, 3.0, 2.0], 2.0)])
    def test_seconds_leave_out_the_compiling_epoch(self, example, seconds, median):
        assert example("report").Run("name", 0.1, [], [], seconds).seconds_per_epoch == median


class TestData:
    def test_scikit_learn_split(self, example):
        data = example("data")
        digits, again = data.load(), data.load()
        assert digits.train_images.shape == (1437, 8, 8, 1)
        assert digits.test_images.shape == (360, 8, 8, 1)
        for images, labels in (digits[:2], digits[2:]):
            assert images.dtype == np.float32 and labels.dtype == np.int32
            assert images.min() == 0 and images.max() == 1
            assert np.ptp(np.bincount(labels) / len(labels)) < 0.02
        for first, second in zip(digits, again, strict=True):
            np.testing.assert_array_equal(first, second)

    @pytest.mark.parametrize("compress", [False, True])
    def test_mnist_files(self, example, compress, tmp_path):
        arrays = write_mnist(tmp_path, compress=compress)
        digits = example("data").load(tmp_path)
        for part, images, labels in (("train", *digits[:2]), ("t10k", *digits[2:])):
            expected = arrays[f"{part}-images-idx3-ubyte"][..., None] / 255
            np.testing.assert_allclose(images, expected, rtol=1e-6)
            np.testing.assert_array_equal(labels, arrays[f"{part}-labels-idx1-ubyte"])
            assert images.dtype == np.float32 and labels.dtype == np.int32

    def test_compression_is_told_by_content(self, example, tmp_path):
        path = tmp_path / "labels.gz"
        path.write_bytes(idx(np.arange(5)))
        np.testing.assert_array_equal(example("data").read_idx(path, rank=1), np.arange(5))

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "expected an IDX file .* got an empty file"),
            (b"\0\0\x08\x01", "expected an IDX file"),
            (idx(np.zeros((2, 2))), "begins with 00 00 08 01, got 00 00 08 02"),
            (b"\0\0\x0d\x01" + bytes(8), "begins with 00 00 08 01, got 00 00 0d 01"),
            (idx(np.zeros(5))[:-1], r"expected 5 bytes of values for its shape \(5,\), got 4"),
            (idx(np.zeros(5)) + b"\0", r"expected 5 bytes of values for its shape \(5,\), got 6"),
            (gzip.compress(idx(np.zeros(5)))[:-9], "expected a whole gzip file, got a damaged one"),
            (gzip.compress(b"")[:5] + b"garbage", "expected a whole gzip file, got a damaged one"),
        ],
    )
    def test_malformed_file(self, example, content, message, tmp_path):
        path = tmp_path / "labels"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message) as error:
            example("data").read_idx(path, rank=1)
        assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)

    @pytest.mark.parametrize(
        ("name", "array", "message"),
        [
            ("train-labels-idx1-ubyte", np.zeros(95), "expected 96 labels, one per image, got 95"),
            ("train-labels-idx1-ubyte", np.full(96, 10), "expected labels from 0 to 9, got 10"),
            ("t10k-images-idx3-ubyte", np.zeros((20, 5, 5)), "of one size, got .6, 5. and .5, 5."),
            ("t10k-images-idx3-ubyte", np.zeros((0, 6, 5)), "expected at least one image"),
        ],
    )
    def test_files_that_disagree(self, example, name, array, message, tmp_path):
        write_mnist(tmp_path)
        (tmp_path / name).write_bytes(idx(array))
        with pytest.raises(ValueError, match=message):
            example("data").load(tmp_path)

    def test_missing_file(self, example, tmp_path):
        write_mnist(tmp_path)
        (tmp_path / "t10k-images-idx3-ubyte").unlink()
        message = "t10k-images-idx3-ubyte: expected this file, or the same with .gz, found neither"
        with pytest.raises(FileNotFoundError, match=message):
            example("data").load(tmp_path)

    def test_shuffled_epochs(self, example):
        epochs = list(example("data").shuffled_epochs(10, 4, epochs=3, seed=0))
        assert len(epochs) == 3
        for batches in epochs:
            assert batches.shape == (2, 4) and batches.dtype == np.int32
            assert len(np.unique(batches)) == 8
        assert (epochs[0] != epochs[1]).any()
