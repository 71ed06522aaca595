"""`jbn.tools.fold` on whole networks: the same outputs, and no batch norm in the program."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import jbn
from gallery import example
from trained import agree, trained_linen, trained_nnx

pytestmark = pytest.mark.usefixtures("standard_promotion")
IMAGES = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)


def compiled(function, *args):
    """The outputs, and how many batch norms the program computes."""
    program = jax.jit(function).lower(*args).compile()
    return program(*args), program.as_text().count("rsqrt(")


def network(name):
    if name == "resnet18":
        return example("models.resnet").resnet18(features=8)
    return example("models.cnn").CNN(norm=jbn.linen.BatchNorm, features=(8, 8))


@pytest.mark.parametrize(("name", "norms"), [("resnet18", 20), ("cnn", 2)])
def test_linen(name, norms, capsys):
    model = network(name)
    variables = trained_linen(model, IMAGES, train=False)
    expected, before = compiled(functools.partial(model.apply, train=False), variables, IMAGES)
    apply, folded, report = jbn.tools.fold(model, variables, IMAGES, train=False)
    actual, after = compiled(functools.partial(apply, train=False), folded, IMAGES)
    agree(actual, expected)
    assert (before, after) == (norms, 0)
    assert list(folded) == ["params"] and len(report.folded) == norms and not report.left
    assert capsys.readouterr().out.startswith(f"folded {norms} of {norms} batch norms\n")


def test_nnx(capsys):
    model = trained_nnx(lambda rngs: example("models.resnet_nnx").ResNet(3, 8, rngs=rngs))

    def run(structure, state, x):
        return nnx.merge(structure, state)(x)

    expected, before = compiled(functools.partial(run, nnx.graphdef(model)), nnx.state(model), IMAGES)
    folded, report = jbn.tools.fold(model, IMAGES, verbose=False)
    actual, after = compiled(functools.partial(run, nnx.graphdef(folded)), nnx.state(folded), IMAGES)
    agree(actual, expected)
    assert (before, after) == (20, 0)
    assert len(report.folded) == 20 and not report.left
    assert not nnx.state(folded, nnx.BatchStat)
    assert capsys.readouterr().out == ""


def test_the_input_need_not_be_there():
    model = network("cnn")
    shape = jax.ShapeDtypeStruct(IMAGES.shape, IMAGES.dtype)
    variables = trained_linen(model, IMAGES, train=False)
    _, folded, _ = jbn.tools.fold(model, variables, shape, train=False)
    _, same, _ = jbn.tools.fold(model, variables, IMAGES, train=False)
    jax.tree.map(np.testing.assert_array_equal, folded, same)


def test_what_is_no_model():
    with pytest.raises(TypeError, match=r"(?s)`model` must be a module .* jbn.tools.fold_into_"):
        jbn.tools.fold(jnp.ones((3, 3)), IMAGES)
    with pytest.raises(TypeError, match=r"`variables` of a Linen model.* got nothing"):
        jbn.tools.fold(nn.Dense(3))
    with pytest.raises(TypeError, match=r"`variables` of a Linen model.* got ndarray"):
        jbn.tools.fold(nn.Dense(3), IMAGES)
    with pytest.raises(
        TypeError, match=r"`variables` must hold \['batch_stats'\] too, got \['params'\]"
    ):
        jbn.tools.fold(nn.Dense(3), {"params": {}}, IMAGES)


class Named(nn.Module):
    """A model that is told its mode by position, and returns more than arrays."""

    @nn.compact
    def __call__(self, x, train):
        y = jbn.linen.BatchNorm(use_running_average=not train)(nn.Dense(3)(x))
        return {"logits": y, "kind": "logits"}


def test_what_is_no_array_is_given_to_the_model_as_it_is():
    x = jnp.ones((2, 4))
    variables = Named().init(jax.random.key(0), x, False)
    apply, folded, report = jbn.tools.fold(Named(), variables, x, False, verbose=False)
    assert len(report.folded) == 1
    expected = Named().apply(variables, x, False)["logits"]
    np.testing.assert_allclose(apply(folded, x, False)["logits"], expected, rtol=1e-5, atol=1e-6)
