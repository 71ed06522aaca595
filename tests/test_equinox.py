"""Arrays of Equinox's fields, without it; with it: test_interop_convert.py."""

import numpy as np
import pytest

import jbn
from jbn.tools import from_equinox, to_equinox

V = np.array([1.0, 2.0], np.float32)
ARRAYS = {"weight": V, "bias": -V, "batch_state_index": (V, 3 * V), "batch_counter": np.array(2)}


def test_the_two_matches():
    params, stats = from_equinox(ARRAYS, match="training")
    np.testing.assert_array_equal([params["scale"], params["bias"], *stats.values()], [V, -V, V, 3 * V])
    _, debiased = from_equinox(ARRAYS, match="inference", momentum=0.5)
    np.testing.assert_allclose(debiased["var"], 4 * V, rtol=1e-6)
    for match, given in (("training", stats), ("inference", debiased)):
        back = to_equinox(params, given, match=match, counter=2, momentum=0.5)
        np.testing.assert_allclose(back["batch_state_index"], (V, 3 * V), rtol=1e-6)
        assert back["batch_counter"] == 2 and set(back) == set(ARRAYS)


def test_nothing_is_divided_before_the_first_step_and_in_mode_ema():
    first = {**ARRAYS, "batch_counter": np.array(0)}
    np.testing.assert_array_equal(from_equinox(first, match="inference")[1]["var"], 3 * V)
    ema = {"ema_state_index": (V, 3 * V)}
    np.testing.assert_array_equal(from_equinox(ema, match="inference")[1]["var"], 3 * V)


def test_both_parameters_or_none():
    _, stats = jbn.init(2)
    assert to_equinox({}, stats)["weight"] is None
    np.testing.assert_array_equal(to_equinox({"scale": V}, stats)["bias"], [0, 0])
    np.testing.assert_array_equal(to_equinox({"bias": V}, stats)["weight"], [1, 1])
    none = {**ARRAYS, "weight": None, "bias": None}
    assert from_equinox(none, match="training")[0] == {}


def test_errors_name_the_entry():
    with pytest.raises(ValueError, match=r"`arrays` must hold \['batch_state_index'\], got weight"):
        from_equinox({"weight": V}, match="training")
    with pytest.raises(ValueError, match=r"`batch_state_index` must be the pair.* got ndarray"):
        from_equinox({"batch_state_index": V}, match="training")
    with pytest.raises(ValueError, match=r"`batch_state_index\[1\]` must have the shape of `weight`"):
        from_equinox({**ARRAYS, "batch_state_index": (V, V[:1])}, match="training")
    with pytest.raises(ValueError, match=r"`arrays` must hold \['batch_counter'\]"):
        from_equinox({"batch_state_index": (V, V)}, match="inference", momentum=0.5)
    with pytest.raises(ValueError, match=r"`momentum`.* must be given .* counter, 2, got None"):
        from_equinox(ARRAYS, match="inference")
    with pytest.raises(TypeError, match="`arrays` must be a mapping from names to arrays, got list"):
        from_equinox([V, V], match="training")
    with pytest.raises(ValueError, match="`match`"):
        from_equinox(ARRAYS, match="all")
    with pytest.raises(ValueError, match=r"`batch_stats` must hold \['mean', 'var'\]"):
        to_equinox({}, {})
