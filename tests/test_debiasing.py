"""Sums and the averages that Haiku and Equinox make of them."""

import numpy as np
import pytest

from jbn.tools.convert.debiasing import sum_and_average, weight

V = np.array([1.0, -2.0], np.float32)


@pytest.mark.parametrize("steps", [1, 2, 50])
def test_the_weight_is_that_of_the_terms(steps):
    terms = [0.9 ** (steps - i) * (1 - 0.9) for i in range(1, steps + 1)]
    np.testing.assert_allclose(weight(steps, 0.9), sum(terms), rtol=1e-12)


def test_either_gives_the_other():
    total, average, counter = sum_and_average(V, "inference", 3, 0.9)
    np.testing.assert_array_equal(average, V)
    np.testing.assert_allclose(total, V * (1 - 0.9**3), rtol=1e-6)
    again = sum_and_average(total, "training", 3, 0.9)
    np.testing.assert_allclose(again[1], V, rtol=1e-6)
    assert total.dtype == average.dtype == np.float32 and counter == again[2] == 3


@pytest.mark.parametrize("match", ["inference", "training"])
def test_without_a_counter_they_are_the_same(match):
    total, average, counter = sum_and_average(V, match, None, None)
    assert total is not average
    np.testing.assert_array_equal(total, average)
    assert np.float32(0.99999) ** np.float32(counter) == 0


def test_errors():
    with pytest.raises(ValueError, match=r"`match` must be one of .*, got 'both'"):
        sum_and_average(V, "both", 3, 0.9)
    for counter in (0, 1.5):
        with pytest.raises(ValueError, match=rf"`counter` must be .* at least 1, got {counter}"):
            sum_and_average(V, "training", counter, 0.9)
    for decay in (None, 1.0, -0.1):
        with pytest.raises(ValueError, match=r"`momentum`, .* lie in \[0, 1\) .* counter, 3, got"):
            sum_and_average(V, "training", 3, decay)
