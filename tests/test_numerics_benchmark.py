"""The numerics benchmark: jbn exact and Flax not, on a tiny shape, and that no NaN is hidden."""

import importlib.util
import json
import math
import re

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from benchmarks import numerics
from benchmarks.shared import reference

# Importing and running the peers, where they are installed, is not to fail on their warnings.
pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("standard_promotion")]


@pytest.mark.slow
def test_jbn_is_exact_and_flax_is_not(tmp_path, monkeypatch, capsys):
    some = {name: numerics.INPUTS[name] for name in ("N(1e4, 1)", "constant 1.234567e7")}
    monkeypatch.setattr(numerics, "INPUTS", some)
    monkeypatch.setattr(numerics, "RATIOS", np.array([]))
    results = numerics.main(["--shape", "8", "4", "4", "3", "--out", str(tmp_path)])
    varying, constant = results["inputs"].values()
    assert set(varying[numerics.JBN]) == {"y", "dx", "dscale", "dbias"}
    assert max(varying[numerics.JBN].values()) <= 1e-6
    assert constant[numerics.JBN] == {"y": 0}
    for flax in ("flax.linen", "flax.linen, two-pass"):
        assert not varying[flax]["y"] <= 1e-5
        assert not constant[flax]["y"] <= 1e-5

    missing = {
        name for name in numerics.PEERS if importlib.util.find_spec(re.split(r"[.,]", name)[0]) is None
    }
    assert (
        set(results["skipped"]) == missing and set(varying) == {numerics.JBN, *numerics.PEERS} - missing
    )
    written = json.loads((tmp_path / "numerics.json").read_text(), parse_constant=pytest.fail)
    assert set(written) == set(results) and {"jbn", "jax", "flax"} <= set(written["versions"])
    assert (tmp_path / "numerics.md").read_text() == capsys.readouterr().out
    assert (tmp_path / "numerics.png").read_bytes().startswith(b"\x89PNG")


def test_the_measures_of_error():
    r, first, second = np.array([0.5, 100.0]), np.array([1e-3, 0]), np.array([0, 1e-3])
    assert reference.error(r + first, r) == pytest.approx(1e-3)
    assert reference.error(r + second, r) == pytest.approx(1e-5)
    assert reference.gradient_error(r + first, r) == pytest.approx(1e-5)
    assert math.isnan(reference.error(r * np.nan, r)) and math.isnan(
        reference.gradient_error(r * np.nan, r)
    )
