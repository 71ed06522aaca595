"""`jbn.Form`: what a variant of other arithmetic or residual writes, and what the rule adds."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jbn
from tolerance import tolerance

RNG = np.random.default_rng(0)
X = (3 + RNG.standard_normal((32, 4))).astype(np.float32)
DY = RNG.standard_normal((32, 4)).astype(np.float32)
BATCH_STATS = jbn.init(4)[1]
PARAMS = {"scale": jnp.array([1.0, -2.0, 0.5, 3.0]), "bias": jnp.array([0.3, 0.0, -1.0, 0.2])}


@dataclasses.dataclass(frozen=True)
class Softplus(jbn.Form):
    """An activation that is not invertible, so that x is kept and the slope is made of it."""

    def activation(self, z):
        return jax.nn.softplus(z)

    def keep(self, reduction, x, y, m, affine):
        return *super().keep(reduction, x, y, m, affine), y

    def deviation(self, reduction, kept):
        return super().deviation(reduction, kept[:2])

    def slope(self, kept):
        return 1 - jnp.exp(-kept[2])


def output(x, params, form=jbn.Form(), **options):
    return jbn.batch_norm(x, params, BATCH_STATS, train=True, form=form, **options)[0]


def test_equal_forms_are_equal():
    assert Softplus() == Softplus() != jbn.Form()
    assert hash(Softplus()) == hash(Softplus())


@pytest.mark.parametrize("masked", [False, True])
def test_a_form_of_ones_own_has_every_derivative(masked):
    mask = (np.arange(32) % 3 > 0)[:, None] if masked else None

    def loss(norm):
        return lambda x, p: jnp.sum(jnp.sin(norm(x, p)) * DY)

    ours = loss(lambda x, p: output(x, p, Softplus(), mask=mask))
    plain = loss(lambda x, p: jax.nn.softplus(output(x, p, mask=mask)))
    bound = tolerance("float32", 100)
    for transform in (
        lambda f: jax.grad(f, (0, 1)),
        lambda f: jax.grad(lambda x, p: jnp.sum(jax.grad(f)(x, p) ** 2), (0, 1)),
        lambda f: lambda x, p: jax.jvp(f, (x, p), (DY, PARAMS)),
    ):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=bound["rtol"], atol=4 * bound["atol"]),
            jax.jit(transform(ours))(X, PARAMS),
            jax.jit(transform(plain))(X, PARAMS),
        )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_half_precision_dx_is_rounded_once(dtype):
    """Each share of it rounded by itself would be off by half a unit of the larger share each time."""
    x, dy = jnp.asarray(X, dtype), jnp.asarray(1 + DY, dtype)
    (dx,) = jax.jit(lambda x, dy: jax.vjp(lambda x: output(x, PARAMS), x)[1](dy))(x, dy)
    wide = jax.vjp(lambda x: output(x, PARAMS), x.astype(jnp.float32))[1](dy.astype(jnp.float32))[0]
    assert dx.dtype == jnp.dtype(dtype)
    close = np.abs(np.float64(dx) - np.float64(wide)) <= 0.501 * np.float64(jnp.finfo(dtype).eps) * (
        2.0 ** np.floor(np.log2(np.maximum(np.abs(wide), 1e-30)))
    )
    assert close.all()


@pytest.mark.parametrize("dtype", [jnp.float8_e4m3fn, jnp.float8_e5m2])
@pytest.mark.parametrize("train", [True, False])
def test_an_output_of_eight_bits(dtype, train):
    y, _ = jbn.batch_norm(X, PARAMS, BATCH_STATS, train=train, dtype=dtype)
    wide, _ = jbn.batch_norm(X, PARAMS, BATCH_STATS, train=train)
    assert y.dtype == dtype
    np.testing.assert_array_equal(np.float32(y), np.float32(wide.astype(dtype)))


@pytest.mark.parametrize("shape", [(32, 1), (1, 4), (32, 4)], ids=str)
@pytest.mark.parametrize("train", [True, False])
def test_parameters_of_their_own_for_each_sample_or_position(shape, train):
    params = {"scale": jnp.asarray(RNG.uniform(0.5, 2, shape), jnp.float32)}
    params["bias"] = jnp.asarray(RNG.standard_normal(shape), jnp.float32)

    def ours(x, params):
        return jbn.batch_norm(x, params, BATCH_STATS, train=train)[0]

    def composed(x, params):
        return jbn.batch_norm(x, {}, BATCH_STATS, train=train)[0] * params["scale"] + params["bias"]

    def gradient(function):
        return jax.value_and_grad(lambda x, p: jnp.sum(function(x, p) ** 2 * DY), (0, 1))(X, params)

    bound = tolerance("float32", 32)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=bound["rtol"], atol=20 * bound["atol"]),
        gradient(ours),
        gradient(composed),
    )
