"""Norms of norms, and those that are none."""

import pytest

import jbn
from jbn.variants.composition import chain, check_inner


def test_a_keyword_is_taken_once():
    check_inner("other", jbn.ghost(groups=2), "scale")
    check_inner("other", jbn.conditional(), "domain")
    with pytest.raises(ValueError, match=r"`norm` of jbn.other must not take `bias`, which .* itself"):
        check_inner("other", jbn.conditional(), "domain", "bias")


def test_a_norm_is_a_value_and_no_function():
    with pytest.raises(TypeError, match=r"`norm` must be a jbn.Norm.*call it: ghost\(\.\.\.\)"):
        check_inner("other", jbn.ghost)


def test_the_chain_of_norms():
    inner = jbn.ghost(groups=2)
    outer = jbn.conditional(inner)
    assert list(chain(outer)) == [outer, inner]
