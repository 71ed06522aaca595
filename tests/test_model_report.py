"""What a report looks like as text, and that it hands its arrays to the picture."""

import numpy as np
import pytest

import jbn

OFF = {"mean": np.full(3, 5.0), "var": np.full(3, 4.0)}


def variables(**layers):
    params, batch_stats = jbn.init(3)
    stats = {name: {**batch_stats, **own} for name, own in layers.items()}
    return {"params": dict.fromkeys(layers, params), "batch_stats": stats}


def test_a_table_of_what_is_known():
    text = str(jbn.tools.report(variables(a=OFF, longer_name=OFF)))
    assert text == (
        "layer        channels  dead  collapsed  non-finite  stale\n"
        "a                   3     0          0           0      0\n"
        "longer_name         3     0          0           0      0\n"
        "\n"
        "nothing found"
    )


def test_columns_of_the_data_are_empty_where_there_are_none():
    data = {"a": {"mean": np.full(3, 5.0), "var": np.full(3, 2.0)}}
    first, a, b, *_ = str(jbn.tools.report(variables(a=OFF, b=OFF), data)).splitlines()
    assert " ".join(first.split()[6:]) == "drift var ratio effect"
    assert " ".join(a.split()) == "a 3 0 0 0 0 0 2 to 2 29.3%"
    assert " ".join(b.split()) == "b 3 0 0 0 0"


def test_a_fix_is_given_once():
    text = str(jbn.tools.report(variables(a={}, b=OFF, c={})))
    problem = "the running statistics are the initial ones, mean 0 and variance 1"
    fix = "    carry `batch_stats` on from step to step, or compute the statistics over data"
    assert text.splitlines()[5:] == [f"a: {problem}", f"c: {problem}", fix]


def test_output_change():
    scaled = lambda v: v["batch_stats"]["a"]["mean"]  # noqa: E731
    own = {"a": {"mean": np.array([1.0, 2.0, 3.0]), "var": np.full(3, 4.0)}}
    report = jbn.tools.report(variables(**own), {"a": OFF}, scaled)
    moved = np.linalg.norm([4, 3, 2]) / np.linalg.norm([-1, 0, 1])
    assert report.output_change == report.layers[0].output_change == pytest.approx(moved)
    assert f"with the data's statistics in all layers the output changes by {moved:.1%}" in str(report)


def test_rows_are_values():
    report = jbn.tools.report(variables(a={}))
    (row,) = report.layers
    assert (row.layer, row.stale, row.findings[0].problem[:11]) == ("a", 3, "the running")
    assert set(report.arrays["a"]) == {"mean", "var", "scale", "bias"} and "array(" not in repr(report)


def test_picture(tmp_path):
    jbn.tools.report(variables(a=OFF)).picture(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
