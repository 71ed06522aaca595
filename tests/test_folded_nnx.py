"""NNX models: the copy, what is shared in it, and what was wrapped in transformations."""

import functools
import pickle

import jax
import numpy as np
import pytest
from flax import nnx

import jbn
from jbn.tools.folding.folded_nnx import FoldedNorm
from trained import agree, trained_nnx

pytestmark = pytest.mark.usefixtures("standard_promotion")
X = np.random.default_rng(0).normal(size=(2, 5, 5, 4)).astype(np.float32)


class Net(nnx.Module):
    """Modules of any name, and what is done with them."""

    def __init__(self, call, **modules):
        for name, module in modules.items():
            setattr(self, name, module)
        self.call = call

    def __call__(self, x):
        return self.call(self, x)


def net(call, **builders):
    return trained_nnx(
        lambda rngs: Net(call, **{name: build(rngs=rngs) for name, build in builders.items()})
    )


def linear(**options):
    return functools.partial(nnx.Linear, 4, 4, **options)


def norm(**options):
    return functools.partial(jbn.nnx.BatchNorm, 4, **options)


def behind(net, x):
    return net.n(net.l(x))


MODELS = {
    "dense": (behind, linear(), norm()),
    "no bias": (behind, linear(use_bias=False), norm(use_scale=False)),
    "flax's norm": (behind, linear(), functools.partial(nnx.BatchNorm, 4, epsilon=0.1)),
    "convolution": (behind, functools.partial(nnx.Conv, 4, 4, (3, 3)), norm(use_bias=False)),
    "transposed": (
        behind,
        functools.partial(
            nnx.ConvTranspose, 4, 4, (3, 2), (2, 2), use_bias=False, transpose_kernel=True
        ),
        norm(),
    ),
    "several features": (
        behind,
        functools.partial(nnx.LinearGeneral, (4,), (3, 4), use_bias=False),
        norm(norm=jbn.streaming()),
    ),
    "under jax.jit": (nnx.jit(behind), linear(), norm()),
    "under jax.checkpoint": (nnx.remat(behind), linear(), norm()),
    "bfloat16": (behind, linear(dtype="bfloat16", use_bias=False), norm()),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_output_is_the_same_and_the_model_as_before(name):
    call, layer, after = MODELS[name]
    model = net(call, l=layer, n=after)
    expected, before = model(X), nnx.state(model)
    folded, report = jbn.tools.fold(model, X, verbose=False)
    assert report.folded[0][:2] == ("n", "l") and not report.left
    agree(folded(X), expected, rtol=2e-2 if name == "bfloat16" else 1e-5)
    assert isinstance(folded.n, FoldedNorm) and len(jax.tree.leaves(nnx.state(folded))) == 2
    assert type(folded.l) is type(model.l)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(model), before)


def test_a_model_in_training_mode_is_folded_in_evaluation():
    model = net(behind, l=linear(), n=norm())
    expected = model(X)
    model.train()
    mean = model.n.mean[...]
    folded, _ = jbn.tools.fold(model, X, verbose=False)
    agree(folded(X), expected)
    assert model.n.use_running_average is False
    np.testing.assert_array_equal(model.n.mean[...], mean)


def test_a_norm_under_two_names_is_gone_from_both():
    model = net(lambda m, x: m.other(m.l(x)), l=linear(), n=norm())
    model.other, model.all = model.n, nnx.List([model.l, model.n])
    expected = model(X)
    folded, _ = jbn.tools.fold(model, X, verbose=False)
    agree(folded(X), expected)
    assert folded.other is folded.n is folded.all[1] and isinstance(folded.n, FoldedNorm)
    assert folded.all[0] is folded.l


LEFT = {
    "called twice": (lambda m, x: m.n(m.l(m.n(m.l(x)))), "n is called 2 times"),
    "not called": (lambda m, x: m.l(x), "or not at all"),
    "told to train": (lambda m, x: m.n(m.l(x), False), "it normalizes by the batch"),
    "between": (lambda m, x: m.n(nnx.relu(m.l(x))), "`max` is before it"),
    "residual": (lambda m, x: m.l(x) + m.n(m.l(x)), "l is called 2 times"),
}


@pytest.mark.parametrize("name", LEFT)
def test_a_norm_that_is_left_and_why(name):
    call, reason = LEFT[name]
    model = net(call, l=linear(), n=norm())
    expected = model(X)
    folded, report = jbn.tools.fold(model, X, verbose=False)
    assert reason in report.left["n"] and not report.folded
    np.testing.assert_array_equal(folded(X), expected)


@pytest.mark.parametrize("name", ["kernel", "bias"])
def test_a_parameter_of_two_layers_is_left(name):
    model = net(lambda m, x: m.other(m.n(m.l(x))), l=linear(), n=norm(), other=linear())
    setattr(model.other, name, getattr(model.l, name))
    report = jbn.tools.fold(model, X, verbose=False).report
    assert report.left == {"n": f"the {name} of l is used elsewhere too"}


def test_a_norm_called_again_under_vmap_is_left():
    model = net(lambda net, x: jax.vmap(lambda z: net.n(z))(net.n(net.l(x))), l=linear(), n=norm())
    folded, report = jbn.tools.fold(model, X, verbose=False)
    assert "is used elsewhere too" in report.left["n"]
    agree(folded(X), model(X))


@pytest.mark.parametrize("layer", [jbn.nnx.BatchNorm, nnx.BatchNorm])
def test_who_asks_what_a_layer_is_gets_the_answer_of_before(layer):
    def call(net, x):
        y = net.n(net.l(x))
        return nnx.relu(y) * net.n.num_features if isinstance(net.n, layer) else y

    model = net(call, l=linear(), n=functools.partial(layer, 4))
    folded, report = jbn.tools.fold(model, X, verbose=False)
    assert len(report.folded) == 1 and not nnx.state(folded.n)
    agree(folded(X), model(X))
    assert not jbn.tools.fold(folded, X, verbose=False).report.left


def test_a_folded_model_can_be_pickled():
    folded, _ = jbn.tools.fold(net(behind, l=linear(), n=norm()), X, verbose=False)
    agree(pickle.loads(pickle.dumps(folded))(X), folded(X))


def test_a_folded_norm_is_not_trained():
    folded, _ = jbn.tools.fold(net(behind, l=linear(), n=norm()), X, verbose=False)
    folded.train()
    with pytest.raises(ValueError, match="`use_running_average` of a batch norm that has been folded"):
        folded(X)
    folded.eval()
    folded(X)


def test_a_model_without_its_input_is_an_error_of_the_layer():
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'inputs'"):
        jbn.tools.fold(nnx.Sequential(nnx.Linear(4, 4, rngs=nnx.Rngs(0))), verbose=False)
