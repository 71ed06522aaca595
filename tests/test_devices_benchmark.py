"""The devices benchmark: it finds jbn right in every way, flax wrong under a mask, and what is sent."""

import json
import math

import numpy as np
import pytest

pytest.importorskip("rich")

from benchmarks import __main__ as command
from benchmarks import collectives, devices, equality, estimate, ways

# One of each kind, in both dtypes; the benchmark itself goes through all.
SOME = [
    "pmap",
    "shard_map, checked, gradient inside",
    "jit, Auto axes, batch and channels sharded",
    "groups, vmap",
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in (
            "vmap in vmap, both axes",
            "shard_map, unchecked, gradient outside",
            "jit, Explicit axes, spatial sharded",
            "groups, shard_map, checked",
        )
    ),
]


@pytest.mark.parametrize("name", SOME)
def test_jbn_is_the_result_of_one_device(name):
    masks = equality.MASKS[1:]
    found = equality.equality("jbn", name, (ways.WAYS | ways.GROUPED)[name], masks=masks)
    for dtype, limit in devices.TARGETS.items():
        for mask in masks:
            assert equality.worst(found[dtype][mask]) <= limit, found[dtype][mask]
            assert set(found[dtype][mask]) == {"y", "dx", "dscale", "dbias", "mean", "var"}


@pytest.mark.parametrize("name", ["vmap", "shard_map, checked, gradient inside"])
@pytest.mark.usefixtures("standard_promotion")
def test_flax_is_not_under_a_mask(name):
    found = equality.equality("flax", name, ways.WAYS[name], dtypes=["float32"])["float32"]
    assert equality.worst(found["no mask"]) <= devices.TARGETS["float32"]
    assert found["uneven mask"]["y"] > 1e-3
    assert math.isnan(equality.worst(found["one device empty"]))


@pytest.mark.usefixtures("standard_promotion")
def test_what_is_not_supported_is_named():
    found = equality.equality("flax", "groups, vmap", ways.GROUPED["groups, vmap"])
    assert found["float32"]["no mask"].startswith("NotImplementedError: axis_index_groups")
    assert math.isnan(equality.worst(found["float32"]["no mask"]))
    (line,) = devices.raised({"groups, vmap": {"flax": found}})
    assert line.startswith("flax raises, groups, vmap: NotImplementedError")


def test_a_group_is_a_batch_of_its_own():
    arrays = equality.case((8, 2, 2, 3), 4, 0, "float64", "uneven mask")
    apart = equality.expected(arrays, [(0, 2), (1, 3)], 4)
    together = equality.expected(arrays, [range(4)], 4)
    np.testing.assert_array_equal(apart["mean"][0], apart["mean"][2])
    assert not np.allclose(apart["mean"], together["mean"])
    np.testing.assert_allclose(apart["dbias"], together["dbias"])


def sent(*sizes, others=()):
    count, total = [len(sizes)] * 2, [sum(sizes)] * 2
    return {
        "executed": count,
        "bytes": total,
        "sizes": list(sizes),
        "in the program": len(sizes),
        "others": list(others),
    }


ROW = {"forward": sent(1024), "forward + backward": sent(1024, 1024), "inference": sent()}
SENT = {"jbn, shard_map": ROW, "jbn, jit": ROW}


RIGHT = {dtype: {"no mask": {"y": 0.0}} for dtype in devices.TARGETS}


def missed(errors, programs):
    verdicts = devices.judge({"pmap": {"jbn": errors}}, programs)
    return {name for name, verdict in verdicts.items() if not verdict["met"]}


def test_a_nan_never_passes():
    wrong = RIGHT | {"float64": {"no mask": {"y": math.nan}}}
    assert missed(RIGHT, SENT) == set()
    assert missed(wrong, SENT) == {"error in every way, float64"}


def test_a_collective_too_many_is_found():
    row = ROW | {"forward": sent(1024, 1024, 8192), "inference": sent(4, others=["all-gather"])}
    assert missed(RIGHT, SENT | {"jbn, shard_map": row}) == {
        "shard_map: all-reduces forward, at most",
        "values per channel in one all-reduce, at most",
        "collectives other than all-reduces",
        "all-reduces in inference",
    }


@pytest.mark.parametrize(
    ("library", "forward", "both"), [("jbn", [64, 32], [64, 32, 32]), ("flax", [32], [32, 32])]
)
@pytest.mark.usefixtures("standard_promotion")
def test_what_one_layer_sends(library, forward, both):
    found = collectives.communication(library, "shard_map, mask", channels=4)
    assert [found[kind]["sizes"] for kind in collectives.PROGRAMS] == [forward, both, []]
    assert not any(program["others"] for program in found.values())


HLO = """HloModule jit_f, entry_computation_layout={(f32[3]{0})->f32[3]{0}}

%few (p: f32[3]) -> f32[3] {
  ROOT %a = f32[3]{0} all-reduce(%p), to_apply=%add
}

%many (p: f32[3]) -> f32[3] {
  %b = (f32[3]{0}, bf16[2,2]{1,0}) all-reduce(%p, %q), to_apply=%add
  ROOT %c = f64[] all-reduce-start(%r), to_apply=%add
}

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %s = f32[] add(%x, %y)
}

ENTRY %main.1 (p: f32[3]) -> f32[3] {
  %d = f32[3]{0} conditional(%i, %p, %p), branch_computations={%few, %many}
  %e = f32[3]{0} call(%d), to_apply=%few
  ROOT %f = f32[6]{0} all-gather(%e), dimensions={0}
}
"""


def test_the_all_reduces_of_a_program_are_followed_into_its_branches():
    assert collectives.measure(HLO) == {
        "executed": [2, 3],
        "bytes": [24, 40],
        "sizes": [20, 8, 12],
        "in the program": 3,
        "others": ["all-gather"],
    }


def test_the_estimate():
    assert len(estimate.RESNET50) == 53
    hop, byte = estimate.LATENCY, 1 / estimate.BANDWIDTH
    assert estimate.seconds([1024], 4, "ring") == pytest.approx(6 * (hop + 256 * byte))
    assert estimate.seconds([1024, 8], 4, "tree") == pytest.approx(8 * hop + 4 * 1032 * byte)


@pytest.mark.usefixtures("standard_promotion")
def test_the_benchmark_prints_and_writes(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(collectives, "CASES", ("shard_map", "jit, batch sharded"))
    monkeypatch.setattr(devices, "CHANNELS", 8)
    monkeypatch.setattr(devices.scaling, "COUNTS", (2,))
    flags = ["--only", "groups, vmap", "--shape", "2", "4", "4", "8", "--repeats", "1"]
    results = devices.main([*flags, "--out", str(tmp_path)])
    written = json.loads((tmp_path / "devices.json").read_text(), parse_constant=pytest.fail)
    assert set(written) == set(results)
    assert set(results["equality"]["errors"]) == {"groups, vmap"}
    timed = results["weak scaling"]["variants"]["jbn"]
    assert set(timed) == {"2"} and all(row["ms"] > 0 for row in timed.values())
    printed = " ".join(capsys.readouterr().out.split())
    assert "THREADS OF ONE CPU" in printed and "ESTIMATE" in printed and "5 us per message" in printed
    assert printed.count("target") >= len(results["targets"])
    png = (tmp_path / "devices.png").read_bytes()
    assert png.startswith(b"\x89PNG") and len(png) < 150_000


def test_an_unknown_way_is_refused(capsys):
    with pytest.raises(SystemExit):
        devices.main(["--only", "nothing"])
    assert "no way holds 'nothing'" in capsys.readouterr().err


def test_the_command_makes_the_devices_before_jax_starts(monkeypatch):
    called = []
    monkeypatch.setattr(devices, "main", called.append)
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=false")
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    command.main(["devices", "--seed", "1"])
    flags = command.os.environ["XLA_FLAGS"].split()
    assert flags[1:] == [f"--xla_force_host_platform_device_count={ways.DEVICES}"]
    assert command.os.environ["JAX_PLATFORMS"] == "cpu"
    assert called == [["--seed", "1"]]
