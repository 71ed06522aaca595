"""One layer's row: what is counted, how it is compared with data, what is said about it."""

import numpy as np
import pytest

from jbn.tools.inspection.layer_report import Limits, channelwise, layer_report

LIMITS = Limits(epsilon=1e-5, dead=1e-3, drift=0.5)
RNG = np.random.default_rng(0)


def arrays(n=6, **others):
    values = {
        "mean": RNG.normal(size=n),
        "var": RNG.uniform(0.5, 2, n),
        "scale": RNG.uniform(0.5, 2, n),
        "bias": RNG.normal(size=n),
    }
    return {name: v for name, v in {**values, **others}.items() if v is not None}


def row(data=None, limits=LIMITS, **others):
    own = channelwise("norm", arrays(**others))
    return layer_report("norm", own, data, limits, None)


def problems(found):
    return " | ".join(finding.problem for finding in found.findings)


def counts(found):
    return found.channels, found.dead, found.collapsed, found.non_finite, found.stale


def test_a_sound_layer():
    found = row()
    assert counts(found) == (6, 0, 0, 0, 0) and not found.findings
    assert found.drift is found.var_ratio is found.effect is found.output_change is None


class TestCounts:
    def test_dead(self):
        found = row(scale=np.array([1e-4, -1e-4, 0, 1, -1, 1]))
        assert counts(found) == (6, 3, 0, 0, 0)
        assert problems(found) == "|scale| below 0.001, dead, in 3 of 6 channels"

    def test_collapsed(self):
        found = row(var=np.array([0, 1e-6, 1e-4, 1.5, 1.5, 1.5]))
        assert counts(found) == (6, 0, 2, 0, 0)
        assert problems(found) == "a variance below epsilon, 1e-05, in 2 of 6 channels"

    def test_negative_variance(self):
        found = row(var=np.array([-1, 1.5, 1.5, 1.5, 1.5, 1.5]))
        assert found.collapsed == 1 and "negative variances" in problems(found)

    def test_non_finite_statistics(self):
        mean = np.array([np.nan, np.inf, 1, 1, 1, 1])
        found = row(mean=mean, var=np.where(np.isnan(mean), -np.inf, 2))
        assert counts(found)[3:] == (2, 0)
        assert "NaN or inf in 2 of 6 channels" in problems(found)
        assert "again over data" in found.findings[0].fix

    @pytest.mark.parametrize("name", ["scale", "bias"])
    def test_non_finite_parameters(self, name):
        found = row(**{name: np.array([np.nan, 1, 1, 1, 1, 1])})
        assert found.non_finite == 1 and "the training diverged" in found.findings[0].fix

    def test_stale(self):
        found = row(mean=np.zeros(6), var=np.ones(6))
        assert counts(found) == (6, 0, 0, 0, 6)
        assert problems(found) == "the running statistics are the initial ones, mean 0 and variance 1"

    def test_partly_stale(self):
        """A mean of 0, or a variance of 1, is not enough."""
        found = row(mean=np.array([0, 0, 1, 1, 1, 1]), var=np.array([1, 2, 1, 2, 2, 2]))
        assert counts(found) == (6, 0, 0, 0, 1)
        assert problems(found) == "the initial statistics in 1 of 6 channels"

    def test_without_scale_and_bias(self):
        assert counts(row(scale=None, bias=None)) == (6, 0, 0, 0, 0)

    def test_no_channels(self):
        found = row(**dict.fromkeys(("mean", "var", "scale", "bias"), np.zeros(0)))
        assert counts(found) == (0, 0, 0, 0, 0) and not found.findings


class TestAgainstData:
    def test_is_what_a_simulation_says(self):
        """y of samples with the data's mean and variance, by them and by the running ones."""
        own, wanted = arrays(3), arrays(3)
        z = RNG.standard_normal((200_000, 3))
        z = (z - z.mean(0)) / z.std(0)
        x = wanted["mean"] + np.sqrt(wanted["var"]) * z
        y, y_of_data = (
            own["scale"] * (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) for stats in (own, wanted)
        )
        found = layer_report("norm", channelwise("norm", own), wanted, LIMITS, None)
        effect = np.sqrt(np.mean((y - y_of_data) ** 2) / np.mean(own["scale"] ** 2))
        assert found.effect == pytest.approx(effect, rel=1e-9)
        off = np.abs(own["mean"] - wanted["mean"]) / np.sqrt(wanted["var"] + 1e-5)
        assert found.drift == pytest.approx(off.max())
        ratio = (own["var"] + 1e-5) / (wanted["var"] + 1e-5)
        assert found.var_ratio == pytest.approx((ratio.min(), ratio.max()))

    def test_the_same_statistics(self):
        own = channelwise("norm", arrays())
        found = layer_report("norm", own, own, LIMITS, None)
        assert (found.drift, found.var_ratio, found.effect) == (0, (1, 1), 0) and not found.findings

    @pytest.mark.parametrize(
        ("mean", "var", "is_found"),
        [
            (0.49, 1, False),
            (0.51, 1, True),
            (0, 2.2, False),
            (0, 2.3, True),
            (0, 0.46, False),
            (0, 0.43, True),
        ],
    )
    def test_what_is_a_finding(self, mean, var, is_found):
        data = {"mean": np.zeros(6), "var": np.ones(6)}
        found = row(data, mean=np.full(6, mean), var=np.full(6, var) + 1e-9)
        assert bool(found.findings) == is_found
        assert not row(
            data, limits=LIMITS._replace(drift=3), mean=np.full(6, 2.0), var=np.full(6, 9.0)
        ).findings

    def test_stale_statistics_are_one_finding(self):
        data = {"mean": np.full(6, 10.0), "var": np.ones(6)}
        found = row(data, mean=np.zeros(6), var=np.ones(6))
        assert found.drift == pytest.approx(10, rel=1e-4) and len(found.findings) == 1

    def test_channels_that_are_not_finite_are_left_out(self):
        data = {"mean": np.array([np.nan, 1, 1]), "var": np.array([1, 1, np.inf])}
        found = row(data, n=3, mean=np.array([5, 1, 5]), var=np.array([1, 4, 1]))
        assert found.drift == 0 and found.var_ratio == pytest.approx((4, 4), rel=1e-4)
        nothing = row({"mean": np.full(3, np.nan), "var": np.ones(3)}, n=3)
        assert nothing.drift is None and not nothing.findings

    def test_dead_channels_change_nothing(self):
        data = {"mean": np.array([0, 9.0]), "var": np.ones(2)}
        own = {"n": 2, "mean": np.zeros(2), "var": np.ones(2)}
        assert row(data, **own, scale=np.array([1.0, 0.0])).effect == 0
        assert row(data, **own, scale=np.zeros(2)).effect == 0


class TestShapes:
    def test_statistics_of_groups(self):
        mean, var = np.array([1.0, 2.0]), np.array([1.0, 0.0])
        values = channelwise("norm", {"mean": mean, "var": var, "scale": np.ones(6)})
        np.testing.assert_array_equal(values["mean"], [1, 1, 1, 2, 2, 2])
        np.testing.assert_array_equal(values["var"], [1, 1, 1, 0, 0, 0])

    def test_domains_that_share_scale(self):
        values = channelwise(
            "norm", {"mean": np.ones((3, 2)), "var": np.ones((3, 2)), "scale": np.ones(2)}
        )
        assert {v.shape for v in values.values()} == {(3, 2)}

    def test_scalars_and_integers(self):
        values = channelwise("norm", {"mean": 0, "var": 1, "scale": np.float16(2)})
        assert {v.dtype for v in values.values()} == {np.dtype(float)}
        assert layer_report("norm", values, None, LIMITS, None).channels == 1

    def test_complex_means(self):
        found = row(
            {"mean": np.full(6, 3j), "var": np.ones(6)}, mean=np.zeros(6, complex), var=np.full(6, 1.0)
        )
        assert found.drift == pytest.approx(3, rel=1e-4)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (
                {"scale": np.ones(4)},
                r"norm: expected arrays of one shape, got `mean` \(6,\), .*`scale` \(4,\)",
            ),
            ({"var": np.ones((2, 6, 3))}, "norm: expected arrays of one shape"),
            ({"mean": np.array(["a"] * 6)}, "norm: expected numbers as `mean`, got dtype <U1"),
            ({"mean": np.zeros(6, "V2")}, r"norm: expected numbers as `mean`, got dtype \|V2"),
        ],
    )
    def test_what_does_not_fit(self, change, message):
        with pytest.raises(ValueError, match=message):
            channelwise("norm", arrays(**change))
