"""Which norms are left, and the reasons that are given."""

import functools

import jax
import numpy as np
import pytest
from flax import linen as nn

import jbn
from trained import trained_linen

pytestmark = pytest.mark.usefixtures("standard_promotion")
X = np.random.default_rng(0).normal(size=(2, 4, 4)).astype(np.float32)
norm = functools.partial(jbn.linen.BatchNorm, use_running_average=True)
dense = functools.partial(nn.Dense, 4)


class Net(nn.Module):
    """What a function does."""

    function: object

    @nn.compact
    def __call__(self, x):
        return self.function(x)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        return norm()(dense()(x))


class Step(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return Block(name="block")(x), None


def residual(x):
    y = dense()(x)
    return norm()(y) + y


def intermediate(x):
    y = dense()(x)
    return norm()(y), y


def norm_twice(x):
    n = norm()
    return n(dense()(n(dense()(x))))


def norm_again_in_a_branch(x):
    n = norm()
    y = n(dense()(x))
    return nn.cond(y.sum() > 0, lambda n, y: n(y), lambda n, y: y, n, y)


def scale_read(x):
    n = norm()
    return n(dense()(x)), n.variables["params"]["scale"]


class Derived(jbn.linen.BatchNorm):
    """Not the norm it derives from."""


def layer_twice(x):
    layer = dense()
    return norm()(layer(layer(x)))


def tied(x):
    layer = dense()
    return norm()(layer(x)) @ layer.variables["params"]["kernel"].T


def scanned(x):
    axes = {"params": 0, "batch_stats": 0}
    return nn.scan(Step, variable_axes=axes, split_rngs={"params": True}, length=2)()(x, None)[0]


def mapped(x):
    axes = {"params": 0, "batch_stats": 0}
    return nn.vmap(Block, variable_axes=axes, split_rngs={"params": True})()(x)


class Standardized(nn.Conv):
    """Not a convolution as others are."""


CASES = {
    "between": (lambda x: norm()(nn.relu(dense()(x))), "`max` is before it, not a layer"),
    "cast": (lambda x: norm()(dense()(x).astype("bfloat16")), "`convert_element_type` is before it"),
    "first": (lambda x: dense()(norm()(x)), "no layer is before it, but the input of the model"),
    "two norms": (lambda x: norm(name="b")(norm(name="a")(nn.relu(x))), "a is before it, not a layer"),
    "another class": (lambda x: norm()(Standardized(4, (1,))(x)), "`add` is before it, not a layer"),
    "residual": (residual, "the output of Dense_0 is used elsewhere too"),
    "returned": (intermediate, "the output of Dense_0 is used elsewhere too"),
    "norm twice": (norm_twice, "BatchNorm_0 is called 2 times"),
    "norm again in a branch": (
        norm_again_in_a_branch,
        "the scale of BatchNorm_0 is used elsewhere too",
    ),
    "scale read": (scale_read, "the scale of BatchNorm_0 is used elsewhere too"),
    "derived norm": (
        lambda x: Derived(use_running_average=True)(dense()(x)),
        "Derived derives from a batch norm, and may do something else",
    ),
    "layer twice": (layer_twice, "Dense_0 is called 2 times"),
    "tied": (tied, "the kernel of Dense_0 is used elsewhere too"),
    "in a loop": (scanned, "is called in a loop, a branch or a transformation, or not at all"),
    "mapped": (mapped, "is called in a loop, a branch or a transformation, or not at all"),
    "normalized kernel": (
        lambda x: norm()(nn.WeightNorm(dense())(x)),
        "the kernel of Dense_0 is made of others before it is used",
    ),
    "own product": (
        lambda x: norm()(dense(dot_general=lambda *a, **k: jax.lax.dot_general(*a, **k))(x)),
        "Dense_0 has a `dot_general` of its own",
    ),
    "own promotion": (
        lambda x: norm()(
            dense(promote_dtype=lambda *arrays, dtype: [v.clip(-1, 1) for v in arrays])(x)
        ),
        "Dense_0 has a `promote_dtype` of its own",
    ),
    "other axis": (
        lambda x: norm(axis=1)(dense()(x)),
        "its axis, 1, is not that of the layer's features",
    ),
    "batch dimensions": (
        lambda x: norm()(nn.DenseGeneral(4, batch_dims=(0,))(x)),
        "DenseGeneral_0 has batch dimensions",
    ),
    "no affine map": (
        lambda x: norm(norm=jbn.inplace("elu"))(dense()(x)),
        "InPlace(activation='elu', negative_slope=0.01, alpha=1.0) is not the map of plain batch norm",
    ),
    "training": (
        lambda x: norm(use_running_average=False)(dense()(x)),
        "it normalizes by the batch here; call the model as in inference",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_norm_that_is_left_and_why(name):
    function, reason = CASES[name]
    model = Net(function)
    variables = trained_linen(model, X)
    _, folded, report = jbn.tools.fold(model, variables, X, verbose=False)
    *_, last = report.left.values()
    assert not report.folded and reason in last
    jax.tree.map(np.testing.assert_array_equal, folded, variables)


def test_inference_may_be_asked_for_by_a_bool_of_numpy():
    model = nn.Sequential([dense(), norm(use_running_average=np.bool_(True))])
    assert jbn.tools.fold(model, trained_linen(model, X), X, verbose=False).report.folded


def test_the_report_in_lines():
    model = nn.Sequential([dense(), norm(), nn.relu, norm()])
    report = jbn.tools.fold(model, trained_linen(model, X), X, verbose=False).report
    assert str(report).splitlines() == [
        "folded 1 of 2 batch norms",
        "  layers_1 into layers_0",
        "  layers_3 is left: `max` is before it, not a layer",
    ]
    assert list(report.left) == ["layers_3"] and report.folded[0].layer == "layers_0"
