"""Three gradients of one function agree: the analytic one, `jax.grad`, and the float64 oracle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import jbn
import reference
from cases import CASES, DTYPES, NAMES
from tolerance import tolerance

HALF = [case for case in DTYPES if "float" in case.dtype]


def by_grad(case, dy):
    x, params, batch_stats, kwargs = case.make()

    def output(x, params):
        return jbn.batch_norm(x, params, batch_stats, train=True, **kwargs)[0]

    @jax.jit
    def gradient(dy, x, params):
        y, vjp = jax.vjp(output, x, params)
        return vjp(dy.astype(y.dtype))

    return gradient(dy, x, params)


def analytic(case, dy):
    x, params, _, kwargs = case.make()

    @jax.jit
    def gradient(dy, x, params):
        m = jbn.moments(x, axis=case.axis, mask=kwargs.get("mask"))
        return jbn.batch_norm_backward(dy.astype(x.dtype), x, params, m, **kwargs)

    return gradient(dy, x, params)


@pytest.mark.parametrize("case", CASES + HALF, ids=lambda case: case.name)
@pytest.mark.parametrize("gradient", [by_grad, analytic])
def test_matches_the_oracle(case, gradient):
    x, params, _, kwargs = case.make()
    dy = case.cotangent().astype(x.dtype)
    dx, dparams = gradient(case, dy)
    assert dx.dtype == x.dtype
    expected = reference.backward(dy, x, params, **{"axis": case.axis, **kwargs})
    close = {name: 4 * value for name, value in tolerance(x.dtype, case.reduced).items()}
    np.testing.assert_allclose(np.asarray(dx, np.float64), expected[0], **close)
    assert dparams.keys() == params.keys()
    for name in params:
        np.testing.assert_allclose(dparams[name], expected[1][name], **close)


QUICK = ("nchw", "two_feature_axes", "channel_mask")


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=[] if c.name in QUICK else pytest.mark.slow) for c in CASES],
    ids=lambda case: case.name,
)
def test_the_oracle_itself_agrees_with_jax_grad_of_a_plain_composition(case, x64):
    x, params, _, kwargs = case.make()
    x, params = jax.tree.map(lambda v: v.astype(jnp.float64), (x, params))
    dy = case.cotangent().astype(jnp.float64)
    if "mask" in kwargs:
        kwargs["mask"] = kwargs["mask"].astype(jnp.float64)
    kwargs["axis"] = case.axis

    @jax.jit
    def gradient(dy, x, params):
        _, vjp = jax.vjp(lambda x, p: reference.plain_batch_norm(x, p, **kwargs), x, params)
        return vjp(dy)

    expected = reference.backward(dy, x, params, **kwargs)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), gradient(dy, x, params), expected
    )


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("mlp", 2),
        ("sequence", 1),
        ("nchw", 1),
        pytest.param("nhwc", 1, marks=pytest.mark.slow),
        pytest.param("volume", 1, marks=pytest.mark.slow),
    ],
)
def test_finite_differences_in_float64(name, order, x64):
    case = NAMES[name]
    x, params, _, kwargs = case.make()
    x, params = jax.tree.map(lambda v: v.astype(jnp.float64), (x, params))
    _, batch_stats = jbn.init(case.features, dtype=jnp.float64)

    @jax.jit
    def output(x, params):
        return jnp.sin(jbn.batch_norm(x, params, batch_stats, train=True, **kwargs)[0])

    check_grads(output, (x, params), order=order, modes=("fwd", "rev"), atol=1e-5, rtol=1e-5)


def test_dx_sums_to_zero_and_is_orthogonal_to_the_normalized_input():
    case = NAMES["nhwc"]
    x, _, _, _ = case.make()
    dx, _ = by_grad(case, case.cotangent())
    x_hat = reference.batch_norm(x, {}, epsilon=0.0)
    np.testing.assert_allclose(np.sum(dx, (0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(np.sum(dx * x_hat, (0, 1, 2)), 0, atol=1e-4)


def test_masked_positions_get_what_the_formula_says():
    case = NAMES["sequence"]
    x, params, _, kwargs = case.make()
    dx, _ = by_grad(case, case.cotangent())
    _, var, _ = reference.moments(x, mask=kwargs["mask"])
    a = np.asarray(params["scale"]) / np.sqrt(var + case.epsilon)
    masked = ~np.broadcast_to(kwargs["mask"], x.shape)
    np.testing.assert_allclose(dx[masked], (case.cotangent() * a[None, None])[masked], rtol=1e-5)


@pytest.mark.parametrize("turn", [1, 0.6 + 0.8j], ids=["real scale", "complex scale"])
def test_complex_input(turn):
    case = NAMES["complex64"]
    x, params, batch_stats, kwargs = case.make()
    if turn != 1:
        params = {name: jax.lax.complex(p * turn.real, p * turn.imag) for name, p in params.items()}
    dy = jax.lax.complex(case.cotangent(), case.cotangent(2))

    def plain(x, params):
        mean = jnp.mean(x, 0, keepdims=True)
        var = jnp.mean(jnp.abs(x - mean) ** 2, 0, keepdims=True)
        y = (x - mean) * jax.lax.rsqrt(var + case.epsilon).astype(x.dtype)
        return y * params["scale"][None].astype(x.dtype) + params["bias"][None].astype(x.dtype)

    @jax.jit
    def gradients(dy, x, params):
        _, expected = jax.vjp(plain, x, params)
        analytic = jbn.batch_norm_backward(dy, x, params, jbn.moments(x), **kwargs)
        _, ours = jax.vjp(lambda x, p: jbn.batch_norm(x, p, batch_stats, train=True)[0], x, params)
        return expected(dy), analytic, ours(dy)

    expected, *both = gradients(dy, x, params)
    for actual in both:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, **tolerance("float32", 36)), actual, expected
        )
