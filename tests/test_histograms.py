"""The picture of a report, whatever its values: files are written, and the bins hold every channel."""

import sys

import matplotlib.axes
import numpy as np
import pytest

from jbn.tools.inspection.histograms import draw

RNG = np.random.default_rng(0)


def layer(n, size=1.0):
    return {
        "mean": size * RNG.normal(size=n),
        "var": RNG.uniform(0.1, 9, n),
        "scale": RNG.normal(size=n),
    }


@pytest.fixture
def panels(monkeypatch):
    """The edges and shares of each panel, and its axes; then those of the bar of colours."""
    drawn = []
    original = matplotlib.axes.Axes.pcolormesh

    def pcolormesh(axes, edges, rows, shares, **look):
        drawn.append((edges, shares, axes))
        return original(axes, edges, rows, shares, **look)

    monkeypatch.setattr(matplotlib.axes.Axes, "pcolormesh", pcolormesh)
    return drawn


def test_every_channel_is_in_the_picture(panels, tmp_path):
    layers = {"a": layer(50), "b": {**layer(7), "mean": np.full(7, 1e6)}}
    del layers["b"]["scale"]
    draw(layers, 1e-5, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    sums = [shares.sum(1) for _, shares, _ in panels[:3]]
    np.testing.assert_allclose(sums, [[1, 0], [1, 1], [1, 1]])
    # A bin of its own for a mean far off, and the others still apart.
    assert np.count_nonzero(panels[1][1][0]) > 3 and panels[1][1][1][-2:].any()


@pytest.mark.parametrize(
    "values",
    [
        np.zeros(3),
        np.full(3, 1e-20),
        np.array([-1e9, 0, 1e9]),
        np.array([np.nan, np.inf, 1]),
        np.full(3, np.nan),
    ],
    ids=["zeros", "tiny", "wide", "partly finite", "not finite"],
)
def test_any_values(values, panels, tmp_path):
    draw({"a": {"mean": values, "var": np.abs(values), "scale": values}}, 1e-5, tmp_path / "a.svg")
    assert b"<svg" in (tmp_path / "a.svg").read_bytes()
    share = 0.0 if np.isnan(values).all() else 1.0
    assert all(shares.sum() == pytest.approx(share) for _, shares, _ in panels[:3])


def test_the_numbers_on_the_axis_are_round_and_apart(panels, tmp_path):
    draw({"a": {**layer(50), "scale": np.linspace(-0.1, 1.1, 50)}}, 1e-5, tmp_path / "a.png")
    labels = [[text.get_text() for text in axes.get_xticklabels()] for _, _, axes in panels[:3]]
    assert sorted(labels[0]) == ["0", "0.5", "1"] and "1" in labels[2]
    for edges, _, axes in panels[:3]:
        ticks = np.sort(axes.get_xticks())
        assert 2 <= len(ticks) <= 7 and (np.diff(ticks) > np.ptp(edges) / 6).all()


def test_complex_means_and_no_channels(tmp_path):
    draw({"a": {"mean": np.array([1j]), "var": np.ones(1)}, "b": layer(0)}, 1e-5, tmp_path / "a.png")


def test_without_matplotlib(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"needs matplotlib: .*pip install 'jbn\[examples\]'"):
        draw({"a": layer(3)}, 1e-5, tmp_path / "a.png")
