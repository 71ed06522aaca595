"""The benchmark of what exactness costs: it measures what it says, and refuses what is wrong."""

import json

import pytest

pytest.importorskip("rich")
from benchmarks import exactness
from jbn.ops import xla

pytestmark = pytest.mark.usefixtures("standard_promotion")


def test_runs_and_writes_its_figures(tmp_path, capsys):
    results = exactness.main(["--shape", "64", "8", "--repeats", "2", "--out", str(tmp_path)])
    assert set(results["figures"]) == {"(64, 8), N(0, 1)", "(64, 8), N(10, 1)"}
    assert all(row["jbn / inexact"] > 0 for row in results["figures"].values())
    written = json.loads((tmp_path / "exactness.json").read_text())
    assert written["targets"].keys() == results["targets"].keys()
    assert "jbn / inexact" in capsys.readouterr().out


def test_the_statistics_are_put_back():
    exact = xla.moments
    with exactness.statistics_of("inexact"):
        assert xla.moments is not exact
    assert xla.moments is exact


def test_refuses_to_time_what_is_wrong(monkeypatch):
    monkeypatch.setattr(exactness, "TOLERANCE", 0.0)
    with pytest.raises(RuntimeError, match="nothing to time"):
        exactness.measure((64, 8), 10.0, 1, 0)
