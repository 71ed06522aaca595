"""`jbn.Norm`: a value, and one of one's own in every style."""

import copy
import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jbn
from layers import gained

X = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
NORMS = {
    "plain": lambda: jbn.plain,
    "inplace": lambda: jbn.inplace("elu", alpha=0.5),
}


@dataclasses.dataclass(frozen=True)
class Noisy(jbn.Norm):
    """A variant of any norm, with a keyword of its own."""

    norm: jbn.Norm = jbn.plain

    def init(self, features, **options):
        return self.norm.init(features, **options)

    def apply(self, x, params, batch_stats, *, train, noise=0.0, **options):
        self.check(options)
        y, batch_stats = self.norm.apply(x, params, batch_stats, train=train, **options)
        return y + noise, batch_stats


@pytest.mark.parametrize("name", NORMS)
def test_equal_settings_are_equal_norms(name):
    norm = NORMS[name]()
    for other in (NORMS[name](), copy.deepcopy(norm), pickle.loads(pickle.dumps(norm))):
        assert other == norm
        assert hash(other) == hash(norm)
    assert norm != Noisy(norm)
    assert repr(norm).partition("(")[0] in repr(Noisy(norm))


def test_the_settings_are_printed_and_cannot_be_changed():
    norm = jbn.inplace("elu", alpha=0.5)
    assert repr(norm) == "InPlace(activation='elu', negative_slope=0.01, alpha=0.5)"
    with pytest.raises(dataclasses.FrozenInstanceError):
        norm.alpha = 1.0
    assert jbn.inplace("elu", alpha=0.25) != norm


def test_equal_layers_are_traced_once():
    traces = 0

    @nnx.jit
    def call(layer, x):
        nonlocal traces
        traces += 1
        return layer(x)

    for _ in range(3):
        call(jbn.nnx.BatchNorm(4, norm=jbn.inplace("elu"), rngs=nnx.Rngs(0)), X)
    assert traces == 1


@pytest.mark.parametrize("norm", [Noisy(), Noisy(jbn.inplace()), Noisy(Noisy())], ids=repr)
def test_one_of_ones_own_takes_its_keyword_in_every_style(norm):
    params, batch_stats = norm.init(4)
    expected, stats = norm.norm.apply(X, params, batch_stats, train=True, momentum=0.5)
    y, functional = norm.apply(X, params, batch_stats, train=True, noise=2.0, momentum=0.5)
    np.testing.assert_allclose(y, expected + 2, rtol=1e-6)

    layer = jbn.linen.BatchNorm(use_running_average=False, momentum=0.5, norm=norm)
    variables = layer.init(jax.random.key(0), X, noise=1.0)
    y, updated = layer.apply(variables, X, noise=2.0, mutable=["batch_stats"])
    np.testing.assert_allclose(y, expected + 2, rtol=1e-6)

    module = jbn.nnx.BatchNorm(4, momentum=0.5, norm=norm, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(module(X, noise=2.0), expected + 2, rtol=1e-6)
    for new in (functional, updated["batch_stats"], {n: getattr(module, n)[...] for n in stats}):
        jax.tree.map(np.testing.assert_array_equal, dict(new), stats)


def styles(norm, **options):
    params, batch_stats = norm.init(4)
    layer = jbn.linen.BatchNorm(use_running_average=False, norm=norm)
    return {
        "functional": lambda: norm.apply(X, params, batch_stats, train=True, **options),
        "linen": lambda: layer.init(jax.random.key(0), X, **options),
        "nnx": lambda: jbn.nnx.BatchNorm(4, norm=norm, rngs=nnx.Rngs(0))(X, **options),
    }


@pytest.mark.parametrize("style", ["functional", "linen", "nnx"])
@pytest.mark.parametrize(
    "norm",
    [jbn.plain, jbn.inplace(), Noisy(), Noisy(jbn.inplace())],
    ids=lambda norm: type(norm).__name__,
)
def test_an_unknown_keyword_names_the_norm_and_what_it_takes(norm, style):
    with pytest.raises(TypeError, match="takes no keyword `domain`") as error:
        styles(norm, domain=1)[style]()
    assert str(error.value).startswith(repr(norm))
    # What a layer hands on itself is not to be given in its call.
    assert ("epsilon" in str(error.value)) == (style == "functional")
    assert ("noise" in str(error.value)) == isinstance(norm, Noisy)


@pytest.mark.parametrize("style", ["linen", "nnx"])
@pytest.mark.parametrize("name", ["epsilon", "train", "axis"])
def test_what_a_layer_gives_is_not_given_in_its_call(name, style):
    with pytest.raises(
        TypeError, match=f"takes no keyword `{name}` in the call of a layer; .* `mask` it takes nothing"
    ):
        styles(jbn.plain, **{name: 1})[style]()


def test_a_norm_that_takes_no_others_refuses_them():
    @dataclasses.dataclass(frozen=True)
    class Closed(jbn.Norm):
        def apply(self, x, params, batch_stats, *, train, shrink=1.0):
            return shrink * x, batch_stats

    with pytest.raises(TypeError, match=r"`epsilon`.*; it takes shrink, train"):
        Closed().check({"epsilon"})
    Closed().check({"shrink"})


@pytest.mark.parametrize(
    ("norm", "message"),
    [
        (jbn.inplace, r"`norm` must be a jbn.Norm.*; call it: inplace\(\.\.\.\)"),
        (jbn.Norm, r"`norm` must be a jbn.Norm.*; call it: Norm\(\.\.\.\)"),
        ("plain", r"`norm` must be a jbn.Norm, such as jbn.plain, got 'plain'"),
    ],
    ids=["a function", "a class", "a string"],
)
def test_what_is_no_norm(norm, message):
    with pytest.raises(TypeError, match=message):
        jbn.nnx.BatchNorm(4, norm=norm, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match=message):
        jbn.linen.BatchNorm(use_running_average=False, norm=norm).init(jax.random.key(0), X)


@pytest.mark.parametrize("style", ["linen", "nnx"])
def test_parameters_and_statistics_are_those_that_init_names(style):
    if style == "linen":
        layer = jbn.linen.BatchNorm(use_running_average=False, norm=gained)
        variables = layer.init(jax.random.key(0), X)
        names = {kind: set(values) for kind, values in variables.items()}
    else:
        module = jbn.nnx.BatchNorm(4, norm=gained, rngs=nnx.Rngs(0))
        kinds = {"params": nnx.Param, "batch_stats": nnx.BatchStat}
        names = {kind: set(nnx.state(module, type_)) for kind, type_ in kinds.items()}
    params, batch_stats = gained.init(4, dtype=jnp.float32)
    assert names == {"params": set(params), "batch_stats": set(batch_stats)}
