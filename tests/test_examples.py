"""Every program runs, reports what it returns and answers --help at once; three stand alone."""

import ast
import functools
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from gallery import PROGRAMS, ROOT, example, few_digits  # noqa: F401

SELF_CONTAINED = ("digits_cnn", "digits_functional", "digits_nnx")
# What makes a run small: the images of a batch, the constants, and of those with names, which remain.
RUNS = {
    "raw_pixels": (128, {"DARK_LEVELS": (0, 1_000_000)}, {"LAYERS": ("flax, default", "jbn")}),
    "small_batches": (128, {"BATCH_SIZES": (128,), "NORMS": ("batch norm",)}, {}),
    "two_domains": (
        128,
        {"HIDDEN": 8},
        {"WAYS": ("domains, an index per example",), "MIXES": ("rare",)},
    ),
    "recurrent": (128, {"HIDDEN": 4}, {"NORMS": ("statistics per step",)}),
    "crossq": (8, {"HIDDEN": 4, "STEPS": 20}, {"NORMS": ("renorm",)}),
    "fine_tune": (50, {"FIRST_BATCH": 50}, {"WAYS": ("batch statistics",)}),
    "covariate_shift": (128, {"RATES": (0.1,), "HIDDEN": (8, 8)}, {}),
    "imbalanced": (32, {"HIDDEN": 8, "NORMS": ("weighted",)}, {}),
    "multi_task": (128, {"HIDDEN": 8, "WAYS": ("per task",)}, {}),
    "rnn": (128, {"HIDDEN": 4, "LAYERS": 1, "NORMS": ("batch norm",)}, {}),
    "resnet": (128, {"SIZE": 16}, {}),
    "recalibrate": (128, {"MOMENTA": (0.9,)}, {"OPTIMIZERS": ("schedule-free",)}),
    "tune_inference": (128, {"ALPHAS": (0.1,)}, {}),
    "sync_batch_norm": (64, {"DEVICES": 2}, {}),
}


@pytest.fixture
def program(request, monkeypatch):
    """A program, made small."""
    module = example(request.param)
    _, constants, kept = RUNS[request.param]
    kept = {name: {key: getattr(module, name)[key] for key in keys} for name, keys in kept.items()}
    for name, value in {**constants, **kept}.items():
        monkeypatch.setattr(module, name, value)
    return module


@pytest.fixture
def shallow(monkeypatch):
    """Makes one block of the ResNets, and one network of them."""
    for name, network in (("models.resnet", "resnet18"), ("models.resnet_nnx", "ResNet")):
        original = functools.partial(getattr(example(name), network), stage_sizes=(1,))
        monkeypatch.setattr(example(name), network, original)
    resnet = example("resnet")
    networks = resnet.networks
    monkeypatch.setattr(resnet, "networks", lambda *flags: dict([networks(*flags).popitem()]))


def test_every_program_is_run_by_a_test():
    assert set(PROGRAMS) == {*RUNS, *SELF_CONTAINED, "fold", "multiprocess"}


# A minute of compilation is left for `pytest -m slow`.
QUICK = ("raw_pixels",)


@pytest.mark.usefixtures("standard_promotion", "few_digits", "shallow")
class TestRuns:
    @pytest.mark.parametrize(
        "program",
        [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in RUNS],
        indirect=True,
    )
    def test_prints_what_it_returns_and_draws_it(self, program, tmp_path, capsys):
        name, out = program.__name__, tmp_path / "new" / "folder"
        epochs = "2" if name == "crossq" else "1"  # the first is of random actions
        flags = ["--epochs", epochs, "--batch-size", str(RUNS[name][0]), "--out", str(out)]
        returned = program.main([*flags, *([] if name == "sync_batch_norm" else ["--seeds", "1"])])
        numbers = jax.tree.leaves(returned)
        assert numbers and np.isfinite(np.concatenate([np.ravel(v) for v in numbers])).all()
        png = (out / f"{name}.png").read_bytes()
        assert png.startswith(b"\x89PNG\r\n\x1a\n") and len(png) < 150_000
        shown = capsys.readouterr().out
        keys = [key if isinstance(key, str) else ", ".join(key) for key in returned]
        accuracies = re.findall(r"-\d+" if name == "crossq" else r"\d+\.\d%", shown)
        assert len(accuracies) >= len(keys)
        if name != "imbalanced":
            assert all(key in shown for key in keys)

    @pytest.mark.slow
    def test_resnet_in_nnx(self, tmp_path):
        flags = ["--model", "nnx", "--width", "2", "--epochs", "1", "--seeds", "1"]
        runs = example("resnet").main([*flags, "--batch-size", "128", "--out", str(tmp_path)])
        assert len(runs) == 2 and (tmp_path / "resnet_nnx.png").is_file()

    def test_fold(self, tmp_path, monkeypatch, capsys):
        one_block = functools.partial(example("models.resnet").resnet18, stage_sizes=(1,))
        monkeypatch.setattr(example("fold"), "resnet18", one_block)
        flags = ["--width", "2", "--batch-size", "128", "--runs", "2", "--out", str(tmp_path)]
        difference, low, median, high = example("fold").main(flags)
        assert difference < 1e-5 and 0 < low <= median <= high
        shown = capsys.readouterr().out
        assert (
            "folded 3 of 3 batch norms" in shown and f"{median:.2f} ({low:.2f} to {high:.2f})" in shown
        )

    @pytest.mark.parametrize("name", SELF_CONTAINED)
    def test_self_contained(self, name, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(example(name), "BATCH_SIZE", 256)
        monkeypatch.setattr(example(name), "MOMENTA", {"cumulative": None}, raising=False)
        monkeypatch.chdir(tmp_path)
        example(name).main(["--epochs", "2", "--learning-rate", "0.01"])
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in lines[:3]] == ["epoch", "1", "2"]
        second = [float(cell) for cell in re.findall(r"(\d+\.\d)%", lines[2])]
        assert second and all(0 <= accuracy <= 100 for accuracy in second)
        if name == "digits_cnn":
            # The network with batch norm, from its checkpoint.
            assert lines[3].endswith(f": {second[0]}% restored")

    @pytest.mark.slow
    @pytest.mark.parametrize("name", SELF_CONTAINED)
    def test_learns(self, name, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        example(name).main(["--epochs", "6"])
        first, *_ = re.findall(r"(\d+\.\d)%", capsys.readouterr().out.splitlines()[6])
        assert float(first) > 96


class TestSelfContained:
    @pytest.mark.parametrize("name", SELF_CONTAINED)
    def test_short_and_of_common_imports(self, name):
        text = (ROOT / f"examples/{name}.py").read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 120
        nodes = list(ast.walk(ast.parse(text)))
        names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        names += [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
        packages = {name.partition(".")[0] for name in names} - sys.stdlib_module_names
        assert packages <= {"flax", "jax", "jbn", "numpy", "optax", "orbax", "sklearn"}


class TestFlags:
    @pytest.mark.parametrize("name", PROGRAMS)
    def test_help_imports_nothing_slow(self, name):
        command = [sys.executable, "-X", "importtime", f"examples/{name}.py", "--help"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        assert "--epochs" in done.stdout and "default" in done.stdout
        imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
        assert "argparse" in imported
        assert not imported & {"jax", "flax", "optax", "numpy", "sklearn", "matplotlib", "jbn"}

    @pytest.mark.parametrize(
        ("flag", "value", "message"),
        [
            ("--epochs", "0", "must be a whole number, at least 1, got 0"),
            ("--epochs", "2.5", "must be a whole number, at least 1, got 2.5"),
            ("--batch-size", "1", "must be a whole number, at least 2, got 1"),
            ("--seed", "-1", "must be a whole number, at least 0, got -1"),
            ("--learning-rate", "0", "must be a positive number, got 0"),
            ("--learning-rate", "nan", "must be a positive number, got nan"),
            ("--learning-rate", "fast", "must be a positive number, got fast"),
        ],
    )
    def test_wrong_value_gives_one_line(self, flag, value, message, capsys):
        with pytest.raises(SystemExit, match="2"):
            example("shared.flags").parser("").parse_args([f"{flag}={value}"])
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.endswith(f"error: argument {flag}: {message}")

    def test_seeds(self):
        flags = example("shared.flags")
        parser = flags.parser("", seeds=3)
        assert list(flags.seeds(parser.parse_args([]))) == [0, 1, 2]
        assert list(flags.seeds(parser.parse_args(["--seed=7", "--seeds=2"]))) == [7, 8]
