"""Statistics as rows of the same arrays."""

import jax.numpy as jnp
import numpy as np
import pytest

from jbn.variants.stacked import check_rows, repeated, rows, with_row

STACK = repeated({"a": jnp.arange(2.0), "count": jnp.array(3)}, 4)


def test_repeated():
    assert {name: v.shape for name, v in STACK.items()} == {"a": (4, 2), "count": (4,)}


@pytest.mark.parametrize("index", [2, jnp.array(2)], ids=["static", "array"])
def test_a_row_is_taken_and_put_back(index):
    row = rows(STACK, index)
    np.testing.assert_array_equal(row["a"], [0, 1])
    changed = with_row(STACK, index, {"a": row["a"] + 5, "count": row["count"]})
    np.testing.assert_array_equal(changed["a"], [[0, 1], [0, 1], [5, 6], [0, 1]])
    np.testing.assert_array_equal(changed["count"], STACK["count"])


@pytest.mark.parametrize("index", [4, -1])
def test_where_there_is_no_row(index):
    assert np.isnan(rows(STACK, index)["a"]).all()
    np.testing.assert_array_equal(with_row(STACK, index, {"a": jnp.ones(2)})["a"], STACK["a"])


def test_rows_of_several_indices():
    np.testing.assert_array_equal(rows(STACK, jnp.array([0, 9]))["a"], [[0, 1], [np.nan, np.nan]])


def test_a_row_of_another_dtype_widens_the_stack():
    half = {"mean": jnp.zeros((2, 3), jnp.bfloat16)}
    wide = with_row(half, 1, {"mean": jnp.full(3, 1.001)})["mean"]
    assert wide.dtype == jnp.float32 and wide[1, 0] == jnp.float32(1.001)
    assert with_row(half, 1, {"mean": jnp.full(3, 1j)})["mean"][1, 0] == 1j


def test_as_many_rows_as_there_are_situations():
    with pytest.raises(
        ValueError, match=r"`batch_stats\['a'\]` must have a first axis of 3, for 3 steps"
    ):
        check_rows("batch_stats", STACK, 3, "steps")
    check_rows("batch_stats", STACK, 4, "steps")
