"""Lists of Keras' weights, without Keras; with it: test_interop_convert.py."""

import numpy as np
import pytest

import jbn
from jbn.tools import from_keras, to_keras


def weights(number, features=3):
    return list(np.random.default_rng(0).uniform(1, 2, (number, features)).astype(np.float32))


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("center", [True, False])
def test_there_and_back(scale, center):
    given = weights(2 + scale + center)
    params, stats = from_keras(given, scale=scale, center=center)
    assert set(params) == {*["scale"] * scale, *["bias"] * center}
    np.testing.assert_array_equal(stats["var"], given[-1])
    if center:
        np.testing.assert_array_equal(params["bias"], given[scale])
    np.testing.assert_array_equal(to_keras(params, stats), given)


def test_deviations():
    gamma, beta, mean, deviation = weights(4)
    given = [gamma, beta, mean, np.zeros(3, np.float32), deviation, mean, deviation]
    params, stats = from_keras(given, renorm=True, epsilon=0.5)
    np.testing.assert_allclose(stats["var"], deviation**2 - 0.5, rtol=1e-6)
    back = to_keras(params, stats, renorm=True, epsilon=0.5)
    np.testing.assert_allclose(back[4:], given[4:], rtol=1e-6)
    assert {v.dtype for v in back} == {np.dtype("float32")}
    given[4] = given[6] = np.full(3, 0.1, np.float32)
    np.testing.assert_array_equal(from_keras(given, renorm=True, epsilon=0.5)[1]["var"], 0)


def test_errors():
    with pytest.raises(ValueError, match=r"4 arrays, gamma, beta, moving_mean.*scale=True.* got 3"):
        from_keras(weights(3))
    with pytest.raises(ValueError, match=r"7 arrays.*renorm_stddev.*renorm=True, got 4"):
        from_keras(weights(4), renorm=True)
    with pytest.raises(ValueError, match=r"`moving_variance` must have the shape of `gamma`"):
        from_keras([*weights(3), np.ones(2)])
    gamma, beta, mean, var, deviation, other = weights(6)
    with pytest.raises(
        ValueError, match="`renorm_stddev` must be `moving_stddev`, got one that differs"
    ):
        from_keras([gamma, beta, mean, var, deviation, mean, other], renorm=True)
    with pytest.raises(ValueError, match=r"`batch_stats` must hold \['mean', 'var'\], got nothing"):
        to_keras(jbn.init(3)[0], {})
