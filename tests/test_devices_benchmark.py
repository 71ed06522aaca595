"""The devices benchmark: it finds jbn right in every way, Flax wrong under a mask, and who raises."""

import json
import math

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from benchmarks import devices
from benchmarks.devices import equality, ways

pytestmark = pytest.mark.several_devices
# One of each kind; the benchmark itself goes through all.
SOME = ["shard_map, checked, gradient inside", "jit, Auto axes, batch and channels sharded"]


@pytest.mark.parametrize(
    "name", [*SOME, "groups, shard_map, checked", pytest.param("pmap", marks=pytest.mark.slow)]
)
def test_jbn_is_the_result_of_one_device(name):
    found = equality.equality("jbn", name, (ways.WAYS | ways.GROUPED)[name], masks=equality.MASKS[2:])
    for dtype, limit in {"float32": 1e-6, "float64": 1e-12}.items():
        (errors,) = found[dtype].values()
        assert set(errors) == {"y", "dx", "dscale", "dbias", "mean", "var"}
        assert np.max(list(errors.values())) <= limit


@pytest.mark.usefixtures("standard_promotion")
def test_flax_is_not_under_a_mask():
    found = equality.equality("flax", "vmap", ways.WAYS["vmap"], dtypes=["float32"])["float32"]
    none, uneven, empty = (np.max(list(errors.values())) for errors in found.values())
    assert none <= 1e-6 and uneven > 1e-3 and math.isnan(empty)


@pytest.mark.slow
@pytest.mark.usefixtures("standard_promotion")
def test_what_is_not_supported_is_named_and_written(tmp_path, capsys):
    results = devices.main(["--only", "groups, vmap", "--out", str(tmp_path)])
    text = capsys.readouterr().out
    assert "flax raises, groups, vmap: NotImplementedError: axis_index_groups" in text
    assert (tmp_path / "devices.md").read_text() == text
    assert set(json.loads((tmp_path / "devices.json").read_text())) == set(results)


def test_a_group_is_a_batch_of_its_own():
    arrays = equality.case((8, 2, 2, 3), 4, 0, "float64", "uneven mask")
    apart = equality.expected(arrays, [(0, 2), (1, 3)], 4)
    together = equality.expected(arrays, [range(4)], 4)
    np.testing.assert_array_equal(apart["mean"][0], apart["mean"][2])
    assert not np.allclose(apart["mean"], together["mean"])
    np.testing.assert_allclose(apart["dbias"], together["dbias"])
