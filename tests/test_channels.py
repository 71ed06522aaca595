"""What the conversions share: copies, dtypes, and the errors that name an entry."""

import jax.numpy as jnp
import numpy as np
import pytest

from jbn.tools.convert.channels import layer_arrays, params_and_stats, per_channel, require


def test_arrays_are_copies_of_their_dtype():
    given = np.ones(3, np.float32)
    (copy,) = per_channel({"gamma": given}).values()
    copy[0] = 2
    assert given[0] == 1 and copy.dtype == np.float32
    (half,) = per_channel({"gamma": jnp.ones(3, "bfloat16")}).values()
    assert half.dtype == jnp.bfloat16


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_statistics_are_float32_at_least(dtype):
    arrays = {name: np.full(3, 0.5, jnp.dtype(dtype)) for name in ("scale", "mean")}
    params, stats = params_and_stats(arrays)
    assert params["scale"].dtype == jnp.dtype(dtype)
    assert stats["mean"].dtype == (np.float64 if dtype == "float64" else np.float32)


@pytest.mark.parametrize(
    ("arrays", "error", "message"),
    [
        (
            {"a": np.ones(3), "b": np.ones(2)},
            ValueError,
            r"`b` must have the shape of `a`, \(3,\), got \(2,\)",
        ),
        ({"conv": np.ones((3, 2))}, ValueError, r"`conv` must have one axis.* got shape \(3, 2\)"),
        ({"a": np.ones(())}, ValueError, r"`a` must have one axis.* got shape \(\)"),
        ({"a": np.arange(3)}, TypeError, "`a` must be a floating-point array, got dtype int64"),
        ({"a": None}, TypeError, "`a` must be a floating-point array, got dtype object"),
        (
            {"a": [[1.0], [2.0, 3.0]]},
            TypeError,
            "`a` must be an array, or become one by np.asarray .*, got list: ",
        ),
    ],
)
def test_what_is_no_array_of_the_channels(arrays, error, message):
    with pytest.raises(error, match=message):
        per_channel(arrays)


def test_a_layer_of_ours():
    params, stats = {"bias": np.zeros(2)}, {"mean": np.zeros(2), "var": np.ones(2), "count": 3}
    assert set(layer_arrays(params, stats, others=("count",))) == {"bias", "mean", "var"}
    with pytest.raises(
        ValueError, match=r"`batch_stats` must be the mapping of one layer.*got \['count'"
    ):
        layer_arrays(params, stats)
    with pytest.raises(
        ValueError, match=r"`params` must be the mapping of one layer.*got \['BatchNorm_0'\]"
    ):
        layer_arrays({"BatchNorm_0": params}, {})
    with pytest.raises(ValueError, match=r"`params` must be the mapping of one layer.* got list"):
        layer_arrays([], {})
    with pytest.raises(
        ValueError, match=r"`batch_stats\['var'\]` must have the shape of `params\['bias'\]`"
    ):
        layer_arrays(params, {"mean": np.zeros(2), "var": np.ones(3)})


def test_what_is_missing_and_what_there_is():
    with pytest.raises(ValueError, match=r"`state` must hold \['b'\], got a$"):
        require({"a": 1}, ["a", "b"], "`state`")
    with pytest.raises(ValueError, match=r"got 0, 1, 2, 3, 4, 5, 6, 7, \.\.\.$"):
        require(dict.fromkeys(range(9)), ["b"], "`state`")
    with pytest.raises(ValueError, match=r"got nothing$"):
        require({}, ["b"], "`state`")
