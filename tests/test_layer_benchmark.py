"""The benchmarks of one layer, layer and exactness: all called rightly, and nothing wrong is timed."""

import functools
import json
import sys

import jax
import numpy as np
import pytest

pytest.importorskip("matplotlib")

from benchmarks import exactness, layer
from benchmarks.layer import bandwidth, figures
from benchmarks.shared import case, layer_times, steps, timing

# Importing and running the peers, where they are installed, is not to fail on their warnings.
pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("standard_promotion")]


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch):
    monkeypatch.setattr(timing, "BLOCK", 1e-4)


@functools.cache
def prepared(shape=(8, 4, 4, 3), axis=-1):
    made = case.make(shape, axis, "float32", 0)
    return made, case.expected(made)


def test_measures_and_writes(tmp_path, capsys):
    flags = ["--shape", "8", "4", "4", "3", "--mode", "forward+backward", "--peers", "haiku"]
    results = layer.main([*flags, "--rounds", "2", "--runs", "1", "--out", str(tmp_path)])
    written = json.loads((tmp_path / "layer.json").read_text(), parse_constant=pytest.fail)
    assert written == json.loads(json.dumps(results))
    assert not written["figures"]["refused"]
    loop, call = (layers["(8, 4, 4, 3)"] for layers in written["figures"]["timed"].values())
    assert loop["flax.linen"]["speed"] == call["flax.linen"]["speed"] == [1]
    assert all(row["ms"][0] > 0 for rows in (loop, call) for row in rows.values())
    assert loop["jbn"]["share of the limit"][0] > 0
    text = (tmp_path / "layer.md").read_text()
    assert text == capsys.readouterr().out
    assert "Form loop, forward+backward" in text and "Form call, forward+backward" in text
    assert (tmp_path / "layer.png").read_bytes().startswith(b"\x89PNG")


def test_a_missing_peer_is_named_and_skipped(monkeypatch):
    monkeypatch.setitem(sys.modules, "equinox", None)
    found, skipped = steps.available(["jbn", "equinox"])
    assert found == ["jbn"] and set(skipped) == {"equinox"}


@pytest.mark.parametrize("form", layer_times.FORMS)
def test_a_wrong_result_is_not_timed_and_the_others_are(form):
    def wrong(made):
        own = steps.ADAPTERS["jbn"](made)
        return own._replace(infer=lambda *args: own.infer(*args) * 1.001)

    prepare = steps.loop if form == "loop" else steps.call
    adapters = {"wrong": wrong, "jbn": steps.ADAPTERS["jbn"]}
    libraries = {name: functools.partial(prepare, adapter) for name, adapter in adapters.items()}
    made, wanted = prepared()
    found = layer_times.measure(form, libraries, made, "inference", wanted["inference"], 1)
    assert set(found.times) == set(found.errors) == {"jbn"}
    assert "y is wrong by" in found.refused["wrong"]
    timed = {"jbn": {"speed": [1.0]}}
    shown = {"timed": {"a, b, c": {"x": timed}}, "refused": {"a, b, c": {"x": {"wrong": ["why"]}}}}
    table, reason = figures.tables(shown, {})
    assert "wrong" in table and reason == "wrong, x, a, b, c, was not timed: why."


@pytest.mark.parametrize("name", ["y", "dx", "dscale", "dbias"])
def test_every_result_is_checked(name):
    wanted = {k: v.astype(np.float32) for k, v in prepared()[1]["forward+backward"].items()}
    assert case.checked(wanted, wanted, "float32") == 0
    for factor in (np.float32(1.001), np.float32(np.nan)):
        with pytest.raises(case.WrongResultError, match=f"{name} is wrong"):
            case.checked({**wanted, name: wanted[name] * factor}, wanted, "float32")
    with pytest.raises(case.WrongResultError, match="y is float64, not float32"):
        case.checked({**wanted, "y": wanted["y"].astype("float64")}, wanted, "float32")


@pytest.mark.parametrize("value", [1e9, 1e-9, np.nan])
def test_what_many_steps_blow_up_is_refused(value):
    with pytest.raises(case.WrongResultError, match="after many steps"):
        case.still_sane({"y": np.ones(2), "dx": np.full(2, value)})


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "axis"), [((8, 4, 4, 3), -1), ((4, 3, 5, 5), 1)])
@pytest.mark.parametrize("name", steps.CALLS)
def test_every_library_is_called_rightly(name, shape, axis):
    pytest.importorskip(name.partition(",")[0].partition(".")[0])
    made, wanted = prepared(shape, axis)
    for mode in case.MODES:
        run, read = steps.CALLS[name](made, mode)
        assert case.checked(read(run()), wanted[mode], "float32") < 1e-5


def test_the_share_of_the_limit():
    # 8 passes in the time of 4 copies, which are 8 passes: at the limit.
    assert bandwidth.share_of_limit("forward+backward", 4.0, 1.0) == 1
    assert bandwidth.share_of_limit("inference", 1.0, 2.0) == 2


def test_exactness_measures_and_writes(tmp_path):
    flags = ["--shape", "64", "8", "--rounds", "2", "--runs", "1", "--out", str(tmp_path)]
    found = exactness.main(flags)["figures"]
    assert found.keys() == {"N(0, 1)", "N(10, 1)"}
    for rows in found.values():
        assert rows["(64, 8)"].keys() == exactness.VARIANTS.keys()
        assert all(ratio[0] > 0 for ratio in rows["(64, 8)"].values())
    assert json.loads((tmp_path / "exactness.json").read_text())["figures"] == found


def test_the_fast_formula_is_the_inexact_one_and_is_refused_where_it_shows():
    x = 1e4 + jax.random.normal(jax.random.key(0), (256, 3))
    assert abs(float(exactness.fast_moments(x).var[0]) - float(x[:, 0].var())) > 0.1
    with pytest.raises(case.WrongResultError, match=r"inexact, \(256, 3\), mean 10000"):
        exactness.times([(256, 3)], 1, 0, means=[1e4])
