"""The benchmark of one layer: what needs no clock, on tiny layers; no figure is checked for speed."""

import functools
import json
import sys

import jax
import numpy as np
import pytest

pytest.importorskip("rich")

from benchmarks import bandwidth, growth, layer, layer_case, layer_targets, layer_times, report, timing
from benchmarks.steps import JAX_LIBRARIES, step
from gallery import quick_compilation  # noqa: F401

# Importing and running the peers, where they are installed, is not to fail on their warnings.
pytestmark = [
    pytest.mark.filterwarnings("default"),
    pytest.mark.usefixtures("standard_promotion"),
]
KEY = f"this / {layer_times.FIRST}"


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch):
    monkeypatch.setattr(timing, "BLOCK", 1e-4)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("results")


@functools.cache
def prepared(shape=(8, 4, 4, 3), axis=-1, dtype="float32"):
    case = layer_case.make(shape, axis, dtype, 0)
    return case, layer_case.expected(case)


def run(out, *flags):
    argv = ["--shape", "8", "4", "4", "3", "--dtype", "float32", "--repeats", "2", *flags]
    return layer.main([*argv, "--out", str(out)])


@pytest.fixture(scope="module")
def results(out):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "BLOCK", 1e-4)
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return run(out, "--mode", "forward+backward", "--parts", "scan", "call", "--only", "haiku")


def test_the_json_holds_what_was_measured(results, out):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    written = json.loads((out / "layer.json").read_text(), parse_constant=refuse)
    assert written == json.loads(json.dumps(results))
    assert [record["form"] for record in written["layers"]] == ["scan", "call"]
    for record in written["layers"]:
        assert record["layer"] == "(8, 4, 4, 3)" and record["bytes"] == 8 * 4 * 4 * 3 * 4
        assert record["rounds"] == 2 and not record["refused"]
        assert {"jbn", "flax.linen"} <= set(record["libraries"]) <= {"jbn", "flax.linen", "haiku"}
        assert record["libraries"]["flax.linen"]["flax.linen / this"] == 1
        assert all(own["error"] < 1e-5 < own["ms"] for own in record["libraries"].values())
    scan, call = written["layers"]
    assert set(scan["GB/s"]) == {"copy", "in place"} and not call["GB/s"]
    assert all(own["share of the limit"] > 0 for own in scan["libraries"].values())
    assert {"command", "machine", "versions", "targets", "last-level cache"} <= set(written)


def test_the_targets_hold_the_measured_ratio(results):
    ratio = results["layers"][0]["libraries"]["flax.linen"][KEY]
    found = results["targets"]["scan, forward+backward: time of flax.linen by jbn's, worst layer"]
    assert found == {"worst": ratio, "target": 1, "met": ratio >= 1, "layers": 1}


def test_the_pictures_are_small(results, out):
    for name in ("layer.png", "layer_limit.png"):
        png = (out / name).read_bytes()
        assert png.startswith(b"\x89PNG") and len(png) < 150_000


def test_the_table_names_layers_forms_and_targets(results, capsys):
    console = report.console()
    layer.print_layers(console, results["layers"])
    report.print_verdicts(console, results["targets"], digits=3)
    text = capsys.readouterr().out
    for part in (
        "inside one compiled loop",
        "one call at a time",
        "(8, 4, 4, 3)",
        "copy, GB/s",
        "goal 1.9",
    ):
        assert part in text
    assert "target 1:" in text


def test_a_missing_peer_is_named_and_skipped(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "equinox", None)
    found = run(tmp_path, "--mode", "inference", "--parts", "call", "--only", "equinox")
    assert set(found["skipped"]) == {"equinox"}
    assert set(found["layers"][0]["libraries"]) == {"jbn", "flax.linen"}
    assert "equinox skipped" in capsys.readouterr().out


@pytest.mark.parametrize("form", layer_times.FORMS)
def test_a_wrong_result_is_not_timed_and_the_others_are(monkeypatch, form):
    def wrong(case):
        own = JAX_LIBRARIES["jbn"](case)
        return own._replace(infer=lambda *args: own.infer(*args) * 1.001)

    monkeypatch.setitem(layer_times.JAX_LIBRARIES, "flax.linen", wrong)
    case, r = prepared()
    record = layer_times.measure(case, "inference", form, ("jbn", "flax.linen"), 1, r["inference"])
    assert set(record["libraries"]) == {"jbn"}
    assert "y is wrong by" in record["refused"]["flax.linen"]
    assert layer_targets.judge([record], [], None) == {}


@pytest.mark.parametrize("name", ["y", "dx", "dscale", "dbias"])
def test_every_result_is_checked(name):
    _, r = prepared()
    expected = r["forward+backward"]
    assert layer_case.checked(expected, expected, "float32") == 0
    for factor in (1.001, np.nan):
        with pytest.raises(layer_case.WrongResultError, match=f"{name} is wrong"):
            layer_case.checked({**expected, name: expected[name] * factor}, expected, "float32")
    with pytest.raises(layer_case.WrongResultError, match="y is bfloat16, not float32"):
        layer_case.checked({**expected, "y": expected["y"].astype("bfloat16")}, expected, "float32")


def test_what_many_steps_blow_up_is_refused():
    layer_case.still_sane({"y": np.ones(2)})
    for value in (1e9, 1e-9, np.nan):
        with pytest.raises(layer_case.WrongResultError, match="after many steps"):
            layer_case.still_sane({"y": np.ones(2), "dx": np.full(2, value)})


@pytest.mark.parametrize(("shape", "axis"), [((8, 4, 4, 3), -1), ((4, 3, 5, 5), 1)])
@pytest.mark.parametrize("name", layer_times.LIBRARIES)
def test_every_library_is_called_rightly(name, shape, axis):
    pytest.importorskip(name.partition(",")[0].partition(".")[0])
    case, r = prepared(shape, axis)
    if layer_times.takes("call", name, case):
        for mode in layer_case.MODES:
            assert layer_times.prepared_call(case, mode, name, r[mode])[1] < 1e-5


@pytest.mark.parametrize("name", ["jbn", "flax.linen", "flax.nnx"])
def test_training_updates_the_running_statistics(name):
    case, _ = prepared()
    own = JAX_LIBRARIES[name](case)
    _, state, _ = step(own, "forward")(own.params, own.state, case.x, case.dy)
    mean = np.asarray(case.x, np.float64).mean((0, 1, 2))
    updated = np.asarray(state["mean"])
    np.testing.assert_allclose(updated, 0.99 * case.values.mean + 0.01 * mean, rtol=1e-5)


def test_the_share_of_the_limit():
    # 8 passes in the time of 4 copies, which are 8 passes: at the limit.
    assert bandwidth.share_of_limit("forward+backward", 4.0, 1.0) == 1
    assert bandwidth.share_of_limit("forward", 3.0, 1.0) == 0.5
    assert bandwidth.share_of_limit("inference", 1.0, 2.0) == 2


def test_the_copies_make_every_pass():
    for run in bandwidth.copies(64).values():
        assert np.asarray(run(np.int32(3))).min() > 1


def test_the_cache_is_the_largest(tmp_path):
    assert bandwidth.last_level_cache(tmp_path) is None
    for index, size in enumerate(("48K", "1024K", "32M")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(f"{size}\n")
    assert bandwidth.last_level_cache(tmp_path) == 32 * 2**20


def record(ratio, share, size, form="scan", mode="forward+backward", **peers):
    libraries = {name: {KEY: value} for name, value in {"flax.linen": ratio, **peers}.items()}
    libraries["jbn"] = {KEY: 1.0, "share of the limit": share}
    kind = {"form": form, "mode": mode, "dtype": "float32", "bytes": size}
    return {**kind, "libraries": libraries}


def test_the_targets():
    records = [record(1.0, 0.6, 10, haiku=1.2), record(4.0, 0.8, 30, haiku=0.9)]
    records += [record(0.9, 1.0, 10, mode="inference"), record(2.0, 1.0, 10, "call", torch=0.5)]
    kept = [record(2.0, 1.0, 10, "call", torch=2.0)]
    found = layer_targets.judge(records, kept, cache=20)
    assert [(target["worst"], target["met"]) for target in found.values()] == [
        (pytest.approx(2), True),  # forward and backward against Flax: the geometric mean,
        (1.0, True),  # the worst layer;
        (0.9, False),  # against Haiku
        (0.9, False),  # inference against Flax
        (0.5, False),  # against PyTorch: in this process,
        (2.0, True),  # with its pages kept
        (0.8, False),  # the share of the limit: beyond the cache,
        (0.6, True),  # within it
    ]


def test_a_layer_that_jbn_does_not_get_right_meets_no_target():
    missing = record(2.0, 1.0, 10)
    del missing["libraries"]["jbn"], missing["libraries"]["flax.linen"][KEY]
    found = layer_targets.judge([record(3.0, 1.0, 10), missing], [], cache=20)
    assert len(found) == 3 and not any(t["met"] for t in found.values())


def test_the_exponent_is_that_of_the_upper_half():
    sizes = 2.0 ** np.arange(10)
    assert growth.exponent(sizes, 3 * sizes**1.2) == pytest.approx(1.2)
    assert growth.exponent(sizes, np.where(sizes < 32, 7.0, sizes**2)) == pytest.approx(2)


def test_growth_measures_every_size(monkeypatch, tmp_path):
    def measured(case, mode, form, libraries, repeats, r):
        assert (mode, form, repeats) == ("forward+backward", "scan", 1)
        n = len(case.x)
        return {"libraries": dict(zip(libraries, ({"ms": n}, {"ms": 3 * n**2}), strict=True))}

    monkeypatch.setattr(growth, "measure", measured)
    monkeypatch.setattr(growth, "SIZES", {"batch": (2, 4, 8), "channels": (2, 4, 8)})
    monkeypatch.setattr(growth, "SHAPES", dict.fromkeys(("batch", "channels"), lambda n: (n, 4)))
    found = growth.growth(1, 0, False, lambda jobs, _: jobs)
    for row in found.values():
        assert row["ms"] == {"jbn": [2, 4, 8], "flax.linen": [12, 48, 192]}
        assert row["exponent"] == {"jbn": pytest.approx(1), "flax.linen": pytest.approx(2)}
    growth.picture(found, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


def test_the_ratio_is_the_median_over_the_rounds():
    assert timing.ratio({"a": [2.0, 9.0, 6.0], "b": [1.0, 1.0, 2.0]}, "a", "b") == 3
    seconds = {"a": iter([1.0, 3.0]), "b": iter([-1.0, 2.0, 4.0])}
    found = timing.rounds(
        {name: functools.partial(next, values) for name, values in seconds.items()}, 2
    )
    assert found == {"a": [1.0, 3.0], "b": [2.0, 4.0]}


@pytest.mark.parametrize("flags", [["--shape", "3"], ["--repeats", "0"], ["--only", "nothing"]])
def test_wrong_flags_are_refused(flags):
    with pytest.raises(SystemExit):
        layer.main(flags)
