"""Parameters and state of Haiku, without it; with it: test_interop_convert.py."""

import numpy as np
import pytest

import jbn
from jbn.tools import from_haiku, to_haiku

NAME = "net/~/norm"


def model(shape=(1, 1, 3)):
    rng = np.random.default_rng(0)
    params, stats = (
        {n: rng.uniform(1, 2, 3) for n in names} for names in (("scale", "bias"), ("mean", "var"))
    )
    return to_haiku(
        params, stats, NAME, ndim=len(shape), axis=shape.index(3), counter=2, decay_rate=0.9
    )


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 3, 1, 1), (3,)])
@pytest.mark.parametrize("match", ["inference", "training"])
def test_there_and_back(shape, match):
    params, state = model(shape)
    axis = shape.index(3)
    ours = from_haiku(params, state, NAME, match=match, axis=axis)
    which = {"inference": "average", "training": "hidden"}[match]
    np.testing.assert_array_equal(ours[1]["var"], state[f"{NAME}/~/var_ema"][which].ravel())
    settings = {"ndim": len(shape), "axis": axis, "counter": 2, "decay_rate": 0.9, "match": match}
    back = to_haiku(*ours, NAME, **settings)
    assert back[0][NAME]["offset"].shape == shape
    np.testing.assert_array_equal(back[0][NAME]["offset"], params[NAME]["offset"])
    for name, entry in state.items():
        for key, value in entry.items():
            np.testing.assert_allclose(back[1][name][key], value, rtol=1e-12)


def test_without_parameters():
    _, state = model()
    params, stats = from_haiku({}, state, NAME, match="inference")
    assert params == {} and set(stats) == {"mean", "var"}
    assert to_haiku(params, stats, NAME, ndim=2)[0] == {}


def test_errors_name_the_entry():
    params, state = model()
    with pytest.raises(
        ValueError, match=r"`state` must hold \['norm/~/mean_ema', .*got net/~/norm/~/mean"
    ):
        from_haiku(params, state, "norm", match="inference")
    with pytest.raises(
        TypeError, match="`params` must be a mapping from names to arrays, got NoneType"
    ):
        from_haiku(None, state, NAME, match="inference")
    with pytest.raises(ValueError, match=r"`match` must be one of .* got 'average'"):
        from_haiku(params, state, NAME, match="average")
    with pytest.raises(
        ValueError, match=r"'offset'\]` must have size one.*`axis`, 0, got shape \(1, 1, 3\)"
    ):
        from_haiku({NAME: {"offset": np.ones((1, 1, 3))}}, state, NAME, match="training", axis=0)
    del state[f"{NAME}/~/var_ema"]["hidden"]
    with pytest.raises(ValueError, match=r"var_ema'\]` must hold \['hidden'\], got average, counter"):
        from_haiku(params, state, NAME, match="training")
    with pytest.raises(ValueError, match=r"`batch_stats` must hold \['mean', 'var'\]"):
        to_haiku(jbn.init(3)[0], {}, NAME, ndim=2)
    with pytest.raises(ValueError, match="`axis`"):
        to_haiku(*jbn.init(3), NAME, ndim=2, axis=2)
