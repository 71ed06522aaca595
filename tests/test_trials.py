"""What the examples with several seeds share."""

import statistics

import numpy as np
import pytest
from matplotlib.figure import Figure

from gallery import example


@pytest.fixture
def trials():
    return example("trials")


class TestSeeds:
    @pytest.mark.parametrize(
        ("flags", "seeds"),
        [([], [0, 1, 2]), (["--seed", "7"], [7, 8, 9]), (["--seeds", "1"], [0])],
    )
    def test_from_seed_on(self, trials, flags, seeds):
        parser = example("report").flags("", seeds=3)
        assert list(trials.seeds(parser.parse_args(flags))) == seeds


class TestSpread:
    def test_mean_and_deviation(self, trials):
        values = [0.97, 0.98, 0.972]
        deviation = 100 * statistics.stdev(values)
        assert trials.spread(values) == f"97.4% ± {deviation:.1f}" == "97.4% ± 0.5"

    def test_arrays(self, trials):
        assert trials.spread(np.float32([0.5, 0.25])) == "37.5% ± 17.7"

    def test_one_value_has_none(self, trials):
        assert trials.spread([0.5]) == "50.0%"

    def test_losses(self, trials):
        assert trials.spread_of_losses(np.array([1.0, 2.0])) == "1.500 ± 0.707"
        assert trials.spread_of_losses([1.0]) == "1.000"


class TestTable:
    def test_aligned(self, trials):
        rows = {"batch norm": ["97.5% ± 0.4", "2"], "none": ["9%", "100"]}
        assert trials.table("layer", ["accuracy", "epochs"], rows).splitlines() == [
            "layer          accuracy  epochs",
            "batch norm  97.5% ± 0.4       2",
            "none                 9%     100",
        ]

    def test_a_cell_for_every_column(self, trials):
        with pytest.raises(ValueError, match="zip"):
            trials.table("", ["one", "two"], {"a": ["1", "2"], "b": ["1"]})


class TestDrawing:
    values = ((0.5, 0.7, 0.9), (0.7, 0.7, 0.8))

    def test_curve_in_its_band(self, trials):
        axes = Figure().subplots()
        trials.curve(axes, [0, 1, 2], self.values, "name")
        np.testing.assert_allclose(axes.lines[0].get_ydata(), [0.6, 0.7, 0.85])
        vertices = axes.collections[0].get_paths()[0].vertices
        deviation = statistics.stdev([0.5, 0.7])
        assert vertices[:, 1].min() == pytest.approx(0.6 - deviation)

    def test_points_with_bars(self, trials):
        axes = Figure().subplots()
        trials.points(axes, [1, 10, 100], self.values, "name")
        _, _, (bars,) = axes.containers[0]
        deviation = statistics.stdev([0.5, 0.7])
        np.testing.assert_allclose(bars.get_segments()[0][:, 1], [0.6 - deviation, 0.6 + deviation])

    def test_one_seed_has_no_deviation(self, trials):
        axes = Figure().subplots()
        trials.points(axes, [1, 10, 100], self.values[:1], "name")
        _, _, (bars,) = axes.containers[0]
        assert np.ptp(bars.get_segments(), axis=1)[:, 1].max() == 0

    def test_accuracy_axis(self, trials):
        axes = Figure().subplots()
        trials.curve(axes, [0, 1, 2], self.values, "name")
        trials.accuracy_axis(axes)
        assert axes.get_ylabel() == "test accuracy"
        assert [text.get_text() for text in axes.get_legend().get_texts()] == ["name"]
        assert axes.yaxis.get_major_formatter()(0.5, 0) == "50%"


class TestSave:
    def test_says_what_it_shows(self, trials, tmp_path, capsys):
        figure = Figure()
        for axes in figure.subplots(1, 2):
            axes.set(xlabel="step", ylabel="test accuracy")
        trials.save(figure, tmp_path / "a.png")
        assert capsys.readouterr().out == f"{tmp_path / 'a.png'}: test accuracy against step\n"

    def test_stays_under_the_limit(self, trials, tmp_path):
        figure = Figure(figsize=(8, 8), dpi=100)
        figure.figimage(np.random.default_rng(0).random((800, 800)))
        path = tmp_path / "noise.png"
        figure.savefig(path)
        assert path.stat().st_size > 150_000
        trials.save(figure, path)
        assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size < 150_000
