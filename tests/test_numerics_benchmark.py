"""The numerics benchmark: what it finds on a tiny shape, and that it can find fault."""

import importlib.util
import json
import math

import jax
import numpy as np
import pytest

pytest.importorskip("rich")

from benchmarks import __main__ as command
from benchmarks import numerics, peers, reference

# Importing and running the peers, where they are installed, is not to fail on their warnings.
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="module")
def results(out):
    # As the fixture `standard_promotion`, for the whole module: Flax and the peers promote implicitly.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return numerics.main(["--shape", "8", "4", "4", "3", "--out", str(out)])


@pytest.mark.parametrize("column", ["jbn", peers.JBN])
@pytest.mark.parametrize("name", numerics.INPUTS)
def test_jbn_meets_its_targets(results, name, column):
    row = results["inputs"][name][column]
    constant = numerics.INPUTS[name][1] == 0
    assert row["y"] <= (0 if constant else numerics.Y_TARGET)
    assert set(row) == {"y"} if constant else {"y", *numerics.GRADIENTS}
    assert all(row[g] <= numerics.GRADIENT_TARGET for g in row if g != "y")


def test_jbn_meets_its_target_in_the_sweep(results):
    assert max(results["sweep"][peers.JBN]) <= numerics.Y_TARGET
    assert all(target["met"] for target in results["targets"].values())


@pytest.mark.parametrize("column", ["flax", "flax, slow var"])
def test_flax_misses_them(results, column):
    row = results["inputs"]["N(1e4, 1)"][column]
    assert not row["y"] <= 10 * numerics.Y_TARGET
    assert not row["dscale"] <= numerics.GRADIENT_TARGET
    assert not results["inputs"]["constant 1.234567e7"][column]["y"] <= 0
    assert max(results["sweep"][column]) > 1e-3


def test_what_is_not_installed_is_skipped_by_name(results):
    names = ("haiku", "equinox", "keras", "torch")
    missing = {name for name in names if importlib.util.find_spec(name) is None}
    assert set(results["skipped"]) == missing
    assert set(results["inputs"]["N(0, 1)"]) == set(peers.LIBRARIES) - missing


def test_json_and_picture_are_written(results, out):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    written = json.loads((out / "numerics.json").read_text(), parse_constant=refuse)
    assert written["inputs"]["N(7, 1)"]["jbn"] == results["inputs"]["N(7, 1)"]["jbn"]
    assert set(written) == set(results)
    assert {"platform", "processors", "cpu"} <= set(written["machine"])
    assert {"jbn", "jax", "flax", "numpy"} <= set(written["versions"])
    png = (out / "numerics.png").read_bytes()
    assert png.startswith(b"\x89PNG") and len(png) < 150_000


def test_a_nan_never_passes():
    r = np.zeros((4, 2))
    y = r.copy()
    y[0, 0] = np.nan
    assert math.isnan(reference.error(y, r))
    assert math.isnan(reference.gradient_error(y, r + 1))
    figures = {"y": math.nan, **dict.fromkeys(numerics.GRADIENTS, math.nan)}
    inputs = {name: {peers.JBN: figures} for name in numerics.INPUTS}
    verdicts = numerics.judge(inputs, {peers.JBN: [0.0, math.nan]})
    assert not any(verdict["met"] for verdict in verdicts.values())


def test_the_error_measure():
    r, first, second = np.array([0.5, 100.0]), np.array([1e-3, 0]), np.array([0, 1e-3])
    assert reference.error(r + first, r) == pytest.approx(1e-3)
    assert reference.error(r + second, r) == pytest.approx(1e-5)
    assert reference.gradient_error(r + first, r) == pytest.approx(1e-5)


def test_the_command_runs_what_is_named(monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(numerics, "main", calls.append)
    command.main(["--list"])
    assert capsys.readouterr().out.splitlines() == list(command.BENCHMARKS) and not calls
    command.main(["numerics", "--seed", "1"])
    assert calls == [["--seed", "1"]]


def test_all_run_where_none_is_named(monkeypatch):
    calls = []
    monkeypatch.setattr(command.subprocess, "run", lambda arguments, check: calls.append(arguments[3:]))
    command.main(["--seed", "1"])
    assert calls == [[name, "--seed", "1"] for name in command.BENCHMARKS]


def test_the_command_refuses_an_unknown_name():
    with pytest.raises(SystemExit, match=r"no benchmark 'nothing'; there are: .*numerics"):
        command.main(["nothing"])
