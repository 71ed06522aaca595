"""Statistics as rows of the same arrays."""

import jax.numpy as jnp
import numpy as np
import pytest

from jbn.variants.stacked import repeated, rows, with_row

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
