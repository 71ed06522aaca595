"""What is taken for batches."""

import numpy as np
import pytest
from flax import nnx

import jbn
from jbn.tools.batches import check_batches, shown, variables_and_batches


class Loader:
    """Iterated again and again."""

    def __iter__(self):
        return iter([1, 2, 3])


@pytest.mark.parametrize("batches", [[1, 2], (1,), Loader(), range(3)], ids=lambda v: type(v).__name__)
def test_what_can_be_iterated_again(batches):
    check_batches("batches", batches, "This")


def test_what_can_be_iterated_once():
    check_batches("batches", iter([1]))
    with pytest.raises(TypeError, match="This iterates over `data` several times, got list_iterator"):
        check_batches("data", iter([1]), "This")


@pytest.mark.parametrize("batches", [np.ones(3), {"x": 1}, 3], ids=lambda v: type(v).__name__)
def test_what_holds_no_batches(batches):
    with pytest.raises(TypeError, match=f"`data` must be a list .* got {type(batches).__name__}"):
        check_batches("data", batches)


def test_a_bar(capsys):
    assert list(shown(Loader(), False, "some")) == list(shown(Loader(), True, "some")) == [1, 2, 3]
    assert "some: 3it" in capsys.readouterr().err


def test_variables_are_linens():
    linen, layer = jbn.linen.BatchNorm(), jbn.nnx.BatchNorm(3, rngs=nnx.Rngs(0))
    assert variables_and_batches(linen, ({}, [1])) == ([{}], [1])
    assert variables_and_batches(layer, ([1],)) == ([], [1])
    for model, given in ((linen, ([1],)), (layer, ({}, [1]))):
        with pytest.raises(TypeError, match=f"got {len(given)} arguments besides BatchNorm"):
            variables_and_batches(model, given)
