"""State dicts of PyTorch, without it; with it: test_interop_convert.py."""

import jax
import numpy as np
import pytest

import jbn
from jbn.tools import from_torch, to_torch


def state_dict(prefix="", features=3):
    rng = np.random.default_rng(0)
    names = ("weight", "bias", "running_mean", "running_var")
    values = {prefix + n: rng.uniform(1, 2, features).astype(np.float32) for n in names}
    return {**values, f"{prefix}num_batches_tracked": np.array(7)}


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("prefix", ["", "layer1.0.bn1", "layer1.0.bn1."])
def test_there_and_back(prefix):
    dotted = prefix and prefix.rstrip(".") + "."
    entries = state_dict(dotted) | state_dict("other.")
    params, stats = from_torch(entries, prefix, cumulative=True)
    equal(params["scale"], entries[dotted + "weight"])
    equal(stats["var"], entries[dotted + "running_var"])
    equal(stats["count"], np.full(3, 7, np.int32))
    equal(to_torch(params, stats, prefix), state_dict(dotted))


def test_the_count_is_for_the_cumulative_average_alone():
    _, stats = from_torch(state_dict())
    assert set(stats) == {"mean", "var"}
    assert to_torch({}, stats)["num_batches_tracked"] == 0


@pytest.mark.parametrize("left_out", [{"weight", "bias"}, {"bias"}, {"num_batches_tracked"}])
def test_layers_without_some_entries(left_out):
    entries = {name: v for name, v in state_dict().items() if name not in left_out}
    params, stats = from_torch(entries)
    assert len(params) == 2 - len(left_out & {"weight", "bias"}) and len(stats) == 2
    y, _ = jbn.batch_norm(np.ones((2, 3), np.float32), params, stats, train=False)
    assert np.isfinite(y).all()


def test_no_running_statistics():
    params, stats = from_torch({"weight": np.ones(2), "bias": np.zeros(2)})
    assert stats == {}
    assert set(to_torch(params, stats)) == {"weight", "bias"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"running_var": None}, r"`state_dict` must hold \['bn.running_var'\], got bn\.bias, bn\.num"),
        ({"running_var": np.ones(2)}, r"`bn.running_var` must have the shape of `bn.weight`, \(3,\)"),
        ({"weight": np.ones((3, 4))}, r"`bn.weight` must have one axis.* got shape \(3, 4\)"),
        ({"num_batches_tracked": None}, r"must hold \['bn.num_batches_tracked'\]"),
    ],
)
def test_errors_name_the_entry(change, message):
    entries = state_dict("bn.") | {f"bn.{name}": v for name, v in change.items()}
    entries = {name: v for name, v in entries.items() if v is not None}
    with pytest.raises(ValueError, match=message):
        from_torch(entries, "bn", cumulative=True)


def test_a_name_that_is_not_there():
    with pytest.raises(
        ValueError, match=r"must hold \['norm.running_mean', 'norm.weight'\], got bn.bias"
    ):
        from_torch(state_dict("bn."), "norm")


def test_a_layer_in_place_of_its_state_dict():
    with pytest.raises(
        TypeError, match="`state_dict` must be a mapping from names to arrays, got object"
    ):
        from_torch(object())


def test_what_pytorch_has_no_place_for():
    params, stats = jbn.init(2, momentum=None)
    with pytest.raises(ValueError, match=r"count'\]` must be one number for PyTorch, got 1 to 2"):
        to_torch(params, {**stats, "count": np.array([1, 2])})
    with pytest.raises(ValueError, match=r"got .*steps"):
        to_torch(params, {**stats, "steps": np.array(1)})
    with pytest.raises(ValueError, match=r"`batch_stats` must hold \['var'\], got mean"):
        to_torch(params, {"mean": stats["mean"]})
