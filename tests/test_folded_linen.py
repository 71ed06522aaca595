"""Linen models: layers without a bias, dtypes, boxes, lifted transformations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.core import FrozenDict

import jbn
from trained import agree, trained_linen

pytestmark = pytest.mark.usefixtures("standard_promotion")
X = np.random.default_rng(0).normal(size=(2, 5, 5, 4)).astype(np.float32)
MASK = np.random.default_rng(1).integers(0, 2, (2, 2, 2, 4)).astype(np.float32)
norm = functools.partial(jbn.linen.BatchNorm, use_running_average=True)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.relu(norm()(nn.Dense(4, use_bias=False)(x)))


def folded(model, variables, x=X):
    """What the folded model does, all norms of which must be gone."""
    apply, variables, report = jbn.tools.fold(model, variables, x, verbose=False)
    assert report.folded and not report.left and "batch_stats" not in variables
    return apply(variables, x), variables


MODELS = {
    "flax's norm": [nn.Conv(3, (3, 3)), nn.BatchNorm(use_running_average=True, epsilon=0.1)],
    "no bias": [nn.Conv(3, (3, 3), use_bias=False), norm(use_bias=False)],
    "no scale": [nn.Dense(3, use_bias=False), norm(use_scale=False)],
    "transposed": [nn.ConvTranspose(3, (3, 2), (2, 1), transpose_kernel=True), norm(epsilon=0.1)],
    "grouped and masked": [nn.Conv(4, (2, 2), feature_group_count=2, mask=MASK), norm()],
    "several features": [nn.DenseGeneral((3, 2), axis=(1, 3)), norm(axis=(-2, -1))],
    "the last of several features": [nn.DenseGeneral((3, 2), axis=(1, 3), use_bias=False), norm()],
    "variants": [
        nn.Dense(3),
        norm(norm=jbn.frozen(jbn.ghost(2))),
        nn.Dense(3),
        norm(norm=jbn.renorm()),
    ],
    "frozen, and told to train": [nn.Dense(3), norm(use_running_average=False, norm=jbn.frozen())],
    "under jax.jit": [nn.jit(Block)(), nn.jit(Block)()],
    "under jax.checkpoint": [
        nn.remat(Block)(),
        nn.remat(nn.Dense)(3),
        nn.remat(jbn.linen.BatchNorm)(True),
    ],
}


@pytest.mark.parametrize("name", MODELS)
def test_the_output_is_the_same(name):
    model = nn.Sequential(MODELS[name])
    variables = trained_linen(model, X)
    kwargs = {"mutable": ["batch_stats"]} if "train" in name else {}
    expected = jax.jit(functools.partial(model.apply, **kwargs))(variables, X)
    actual, _ = folded(model, variables)
    agree(actual, expected[0] if kwargs else expected)


def test_programs_of_before_and_after_are_not_mixed_up():
    """The cache of an inner `jax.jit` has the program with the norms when the folded one is traced."""
    model = nn.Sequential([nn.jit(Block)()])
    variables = trained_linen(model, X)
    expected = model.apply(variables, X)
    agree(folded(model, variables)[0], expected)
    np.testing.assert_array_equal(model.apply(variables, X), expected)


@pytest.mark.parametrize(
    ("layer", "after", "output"),
    [
        ({"dtype": "bfloat16"}, {}, "float32"),
        ({"dtype": "bfloat16"}, {"dtype": "bfloat16"}, "bfloat16"),
        ({}, {"dtype": "bfloat16"}, "bfloat16"),
        ({"param_dtype": "bfloat16"}, {"param_dtype": "bfloat16"}, "float32"),
    ],
)
@pytest.mark.parametrize("use_bias", [True, False])
def test_dtypes_are_kept(layer, after, output, use_bias):
    model = nn.Sequential([nn.Dense(3, use_bias=use_bias, **layer), norm(**after)])
    variables = trained_linen(model, X)
    y, new = folded(model, variables)
    assert y.dtype == output
    expected = model.apply(variables, X)
    agree(y.astype("float32"), expected.astype("float32"), rtol=2e-2)
    kernel = new["params"]["layers_0"]["kernel"]
    assert kernel.dtype == variables["params"]["layers_0"]["kernel"].dtype


def test_the_variables_given_are_left_as_they_are():
    model = nn.Sequential([nn.Dense(3), norm()])
    variables = trained_linen(model, X)
    frozen = FrozenDict(variables)
    _, new = folded(model, frozen)
    assert jax.tree.structure(frozen) == jax.tree.structure(FrozenDict(trained_linen(model, X)))
    assert isinstance(new, dict) and set(new["params"]) == {"layers_0"}
    jax.tree.map(np.testing.assert_array_equal, folded(model, variables)[1], new)


def test_variables_that_are_not_folded_are_refused():
    model = nn.Sequential([nn.Dense(3), norm()])
    variables = trained_linen(model, X)
    apply, _, _ = jbn.tools.fold(model, variables, X, verbose=False)
    with pytest.raises(ValueError, match=r"`variables` must be those .* statistics of layers_1"):
        apply(variables, X)
    without_bias = nn.Sequential([nn.Dense(3, use_bias=False), norm()])
    variables = trained_linen(without_bias, X)
    apply, _, _ = jbn.tools.fold(without_bias, variables, X, verbose=False)
    with pytest.raises(ValueError, match=r"`variables` must be those .* no bias of layers_0"):
        apply(variables, X)


def test_a_folded_norm_is_not_trained():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return jbn.linen.BatchNorm(use_running_average=not train)(nn.Dense(3)(x))

    variables = Network().init(jax.random.key(0), X, train=False)
    apply, new, _ = jbn.tools.fold(Network(), variables, X, train=False, verbose=False)
    with pytest.raises(ValueError, match="`use_running_average` of a batch norm that has been folded"):
        apply(new, X, train=True)


def test_boxed_parameters_come_out_of_their_boxes():
    init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
    model = nn.Sequential([nn.Dense(3, kernel_init=init), norm()])
    variables = model.init(jax.random.key(0), X)
    assert isinstance(variables["params"]["layers_0"]["kernel"], nn.Partitioned)
    actual, new = folded(model, variables)
    assert isinstance(new["params"]["layers_0"]["kernel"], jax.Array)
    agree(actual, model.apply(variables, X))


def test_arguments_by_name_and_several_inputs():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, y, *, train):
            z = nn.Dense(3)(inputs=x) + nn.Dense(3, name="other")(y)
            return z, jbn.linen.BatchNorm()(x=nn.Dense(3)(x), use_running_average=not train)

    variables = trained_linen(Net(), X, y=X, train=False)
    apply, new, report = jbn.tools.fold(Net(), variables, X, X, train=False, verbose=False)
    assert not report.left
    for a, b in zip(
        apply(new, X, 2 * X, train=False), Net().apply(variables, X, 2 * X, train=False), strict=True
    ):
        agree(a, b)


def test_gradients_flow_to_the_folded_layers():
    model = nn.Sequential([nn.Dense(3, use_bias=False), norm()])
    apply, new, _ = jbn.tools.fold(model, trained_linen(model, X), X, verbose=False)
    grads = jax.grad(lambda v: jnp.sum(apply(v, X) ** 2))(new)
    assert all(g.any() for g in jax.tree.leaves(grads)) and len(jax.tree.leaves(grads)) == 2
