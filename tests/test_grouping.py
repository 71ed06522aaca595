"""The batch axis divided into groups, and joined again."""

import jax.numpy as jnp
import numpy as np
import pytest

from jbn.variants.grouping import divided


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("features", [(2,), (0,), (0, 2)], ids=str)
@pytest.mark.parametrize(("groups", "size"), [(2, None), (None, 2), (4, None)])
def test_join_inverts_divide(features, groups, size, interleaved):
    x = jnp.arange(6 * 6 * 3).reshape(6, 6, 3)
    grouping = divided(x.shape, features, groups, size, interleaved, uneven=True)
    v = grouping.divide(x)
    np.testing.assert_array_equal(grouping.join(v), x)
    axes = grouping.features(features)
    assert [v.shape[a] for a in axes].count(grouping.groups) >= 1
    assert sorted(set(range(4)) - set(axes))[0] in (grouping.axis, grouping.axis + 1)


def test_which_example_is_in_which_group():
    x = jnp.arange(6).reshape(6, 1)
    for interleaved, first in ((False, [0, 1, 2]), (True, [0, 2, 4])):
        grouping = divided(x.shape, (1,), 2, None, interleaved, uneven=False)
        (axis, _) = grouping.features((1,))
        np.testing.assert_array_equal(jnp.take(grouping.divide(x), 0, axis).ravel(), first)


def test_the_filling_is_masked():
    grouping = divided((5, 1), (1,), 2, None, interleaved=False, uneven=True)
    mask = grouping.divide_mask(jnp.ones((1, 1), bool))
    np.testing.assert_array_equal(mask[..., 0], [[True] * 3, [True, True, False]])
