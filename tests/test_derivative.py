"""Every derivative, with the default arguments: against JAX's own of a plain composition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jbn
import reference
from cases import CASES, FUNCTIONS, NAMES
from tolerance import tolerance

SMALL = NAMES["mlp"]
MASKED = NAMES["sequence"]
by_case = pytest.mark.parametrize("case", [SMALL, MASKED], ids=lambda case: case.name)


def close(actual, expected, reduced=30):
    scale = max(1.0, *(float(np.max(np.abs(v))) for v in jax.tree.leaves(expected)))
    bounds = {name: 4 * value for name, value in tolerance("float32", reduced).items()}
    bounds["atol"] *= scale
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **bounds), actual, expected)


def outputs(case):
    """(ours, plain): functions of (x, params) with the output y."""
    _, _, batch_stats, kwargs = case.make()

    def ours(x, params):
        return jbn.batch_norm(x, params, batch_stats, train=True, **kwargs)[0]

    def plain(x, params):
        return reference.plain_batch_norm(x, params, axis=case.axis, **kwargs)

    kwargs.pop("axis")
    return ours, plain


def losses(case):
    """The same as a nonlinear scalar, so that no derivative vanishes."""
    weights = case.cotangent()

    def scalar(function):
        return lambda x, params: jnp.sum(jnp.sin(function(x, params)) * weights)

    return tuple(map(scalar, outputs(case)))


def both(transform, functions, *arguments):
    """The transformed pair, applied under one jit each."""
    return tuple(jax.jit(transform(f))(*arguments) for f in functions)


@functools.cache
def plain_derivatives(case):
    """(value, gradient, hessian) of the plain loss, which every way of ours must come to."""
    x, params, _, _ = case.make()
    _, plain = losses(case)

    @jax.jit
    def derivatives(x, params):
        return *jax.value_and_grad(plain, (0, 1))(x, params), jax.hessian(plain, (0, 1))(x, params)

    return derivatives(x, params)


def gradient_of_checkpoint(policy):
    return lambda f: jax.grad(
        jax.checkpoint(f, policy=getattr(jax.checkpoint_policies, policy)), (0, 1)
    )


FIRST_ORDER = {
    "grad": lambda f: jax.grad(f, (0, 1)),
    "jacfwd": lambda f: jax.jacfwd(f, (0, 1)),
    "jacrev": lambda f: jax.jacrev(f, (0, 1)),
    "grad of checkpoint": lambda f: jax.grad(jax.checkpoint(f), (0, 1)),
    "grad of checkpoint, nothing saveable": gradient_of_checkpoint("nothing_saveable"),
    "grad of checkpoint, everything saveable": gradient_of_checkpoint("everything_saveable"),
}


def of_params_and_x(hessian):
    return {name: with_respect_to[0] for name, with_respect_to in hessian[1].items()}


# Each with the part of the whole hessian that it makes.
SECOND_ORDER = {
    "hessian": (lambda f: jax.hessian(f, (0, 1)), lambda hessian: hessian),
    "forward over forward": (lambda f: jax.jacfwd(jax.jacfwd(f, 1), 0), of_params_and_x),
    "reverse over reverse": (lambda f: jax.jacrev(jax.jacrev(f, 1), 0), of_params_and_x),
    "reverse over forward": (lambda f: jax.jacrev(jax.jacfwd(f, 1), 0), of_params_and_x),
    "hessian of checkpoint": (
        lambda f: jax.hessian(jax.checkpoint(f), 0),
        lambda hessian: hessian[0][0],
    ),
}


@by_case
@pytest.mark.parametrize("name", FIRST_ORDER)
def test_first_order(case, name):
    x, params, _, _ = case.make()
    ours, _ = losses(case)
    _, gradient, _ = plain_derivatives(case)
    close(jax.jit(FIRST_ORDER[name](ours))(x, params), gradient)


@by_case
def test_value_and_grad(case):
    x, params, _, _ = case.make()
    ours, _ = losses(case)
    close(jax.jit(jax.value_and_grad(ours, (0, 1)))(x, params), plain_derivatives(case)[:2])


@pytest.mark.parametrize(
    ("case", "name"),
    [
        *((MASKED, name) for name in SECOND_ORDER),
        *(
            pytest.param(SMALL, name, marks=[] if name == "hessian" else pytest.mark.slow)
            for name in SECOND_ORDER
        ),
    ],
    ids=lambda v: getattr(v, "name", v),
)
def test_second_order(case, name):
    x, params, _, _ = case.make()
    ours, _ = losses(case)
    transform, part = SECOND_ORDER[name]
    close(jax.jit(transform(ours))(x, params), part(plain_derivatives(case)[2]))


@pytest.mark.parametrize(
    "case", [pytest.param(SMALL, marks=pytest.mark.slow), MASKED], ids=lambda case: case.name
)
def test_gradient_of_a_function_of_the_gradient(case):
    x, params, _, _ = case.make()

    def penalty(f):
        return jax.grad(lambda x, p: jnp.sum(jnp.square(jax.grad(f)(x, p))), (0, 1))

    close(*both(penalty, losses(case), x, params))


def test_third_order():
    x, params, _, _ = SMALL.make()

    def third(f):
        def along(x, v):
            return jax.jvp(lambda x: jax.grad(f)(x, params), (x,), (v,))[1]

        return lambda x, v: jax.grad(lambda x: jnp.sum(along(x, v) ** 2))(x)

    close(*both(third, losses(SMALL), x, jnp.cos(x)), reduced=200)


@by_case
def test_jvp_and_linearize(case):
    x, params, _, _ = case.make()
    tangents = jnp.cos(x), jax.tree.map(jnp.sin, params)
    ours, plain = outputs(case)
    y, expected = jax.jvp(plain, (x, params), tangents)
    close(jax.jvp(ours, (x, params), tangents), (y, expected))
    y_linear, linear = jax.linearize(ours, x, params)
    close((y_linear, linear(*tangents)), (y, expected))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_jvp_is_the_transpose_of_vjp(case):
    x, params, batch_stats, kwargs = case.make()

    def ours(x, params):
        return jbn.batch_norm(x, params, batch_stats, train=True, **kwargs)[0]

    tangents = jnp.cos(x), jax.tree.map(jnp.sin, params)
    ct = case.cotangent()
    _, forward = jax.jvp(ours, (x, params), tangents)
    cotangents = jax.vjp(ours, x, params)[1](ct)
    products = jax.tree.map(lambda a, b: jnp.vdot(a, b), tangents, cotangents)
    assert abs(jnp.vdot(forward, ct) - sum(jax.tree.leaves(products))) < 1e-4


def test_derivative_of_the_moments():
    """The rule returns true tangents for the statistics, or second derivatives would be wrong."""
    x, _, _, kwargs = MASKED.make()

    def ours(x):
        m = jbn.moments(x, mask=kwargs["mask"])
        return jnp.sum(jnp.sin(m.mean) * m.var)

    def plain(x):
        w = jnp.broadcast_to(kwargs["mask"].astype(x.dtype), x.shape)
        n = jnp.sum(w, (0, 1))
        mean = jnp.sum(w * x, (0, 1)) / n
        var = jnp.sum(w * (x - mean[None, None]) ** 2, (0, 1)) / n
        return jnp.sum(jnp.sin(mean) * var)

    close(*both(jax.hessian, (ours, plain), x))


MAPPED = {
    "x": (0, None, None),
    "params": (None, 0, None),
    "batch_stats": (None, None, 0),
    "all": (0, 0, 0),
}


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("mapped", MAPPED)
def test_vmap_over_grad_over_each_argument(mapped, train):
    x, params, batch_stats, kwargs = MASKED.make()
    arguments = (x, params, batch_stats)
    in_axes = MAPPED[mapped]
    arguments = tuple(
        jax.tree.map(lambda v: jnp.stack([v, 1.5 * v, v + 0.5]), a) if axis == 0 else a
        for a, axis in zip(arguments, in_axes, strict=True)
    )

    def gradient(x, params, batch_stats):
        def loss(x, params):
            y, stats = jbn.batch_norm(x, params, batch_stats, train=train, **kwargs)
            return jnp.sum(jnp.sin(y) * MASKED.cotangent()), stats

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(x, params)

    batched = jax.vmap(gradient, in_axes)(*arguments)
    for row in range(3):
        one = (
            jax.tree.map(lambda v, r=row: v[r], a) if axis == 0 else a
            for a, axis in zip(arguments, in_axes, strict=True)
        )
        close(jax.tree.map(lambda v, r=row: v[r], batched), gradient(*one))


@pytest.mark.parametrize("mode", [jax.jacfwd, jax.jacrev])
def test_vmap_of_second_derivatives(mode):
    x, params, _, _ = SMALL.make()
    xs = jnp.stack([x, 2 * x])
    ours, plain = losses(SMALL)

    def hessians(f):
        return jax.vmap(lambda x: mode(jax.grad(f))(x, params))

    close(*both(hessians, (ours, plain), xs))


def through_scan():
    """(ours, plain): losses of a scan over layers, with the statistics as carry."""
    _, _, batch_stats, _ = SMALL.make()

    def loss(batch_norm):
        def run(x, params):
            def layer(carry, scale):
                h, stats = carry
                h, stats = batch_norm(h * scale, params, stats)
                return (jnp.tanh(h), stats), jnp.sum(h)

            (h, _), sums = jax.lax.scan(layer, (x, batch_stats), jnp.array([1.0, 0.5, 2.0]))
            return jnp.sum(h * SMALL.cotangent()) + jnp.sum(sums)

        return run

    def ours(h, params, stats):
        return jbn.batch_norm(h, params, stats, train=True)

    def plain(h, params, stats):
        return reference.plain_batch_norm(h, params), stats

    return loss(ours), loss(plain)


def test_grad_through_scan_with_the_statistics_as_carry():
    x, params, _, _ = SMALL.make()
    close(*both(FIRST_ORDER["grad"], through_scan(), x, params), reduced=100)


@pytest.mark.parametrize(
    "transform",
    [
        pytest.param(
            jax.hessian,
            marks=pytest.mark.skipif(
                jax.__version_info__ < (0, 12), reason="JAX loses the rule in the gradient of a scan"
            ),
        ),
        lambda f: jax.jacrev(jax.jacfwd(f)),
    ],
    ids=["hessian", "reverse over forward"],
)
def test_second_derivatives_through_scan(transform):
    x, params, _, _ = SMALL.make()

    def in_params(loss):
        return lambda x, p: transform(lambda p: loss(x, p))(p)

    close(*both(in_params, through_scan(), x, params), reduced=1000)


@pytest.mark.parametrize("train", [True, False])
def test_grad_with_a_traced_train_flag(train):
    x, params, batch_stats, kwargs = MASKED.make()

    def loss(x, params, flag):
        y, _ = jbn.batch_norm(x, params, batch_stats, train=flag, **kwargs)
        return jnp.sum(jnp.sin(y) * MASKED.cotangent())

    gradient = jax.grad(loss, (0, 1))
    close(jax.jit(gradient)(x, params, train), gradient(x, params, train))
    second = jax.jit(jax.jacfwd(jax.grad(loss, 1), 1))
    close(second(x, params, train), jax.jacfwd(jax.grad(loss, 1), 1)(x, params, train))


def test_gradient_of_epsilon():
    x, params, batch_stats, _ = SMALL.make()

    def ours(epsilon):
        return jnp.sum(jbn.batch_norm(x, params, batch_stats, train=True, epsilon=epsilon)[0] ** 3)

    def plain(epsilon):
        return jnp.sum(reference.plain_batch_norm(x, params, epsilon=epsilon) ** 3)

    close(jax.grad(ours)(0.1), jax.grad(plain)(0.1))


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("name", ["two_feature_axes", pytest.param("mlp", marks=pytest.mark.slow)])
def test_every_public_function_under_jit_vmap_and_eval_shape(function, name):
    case = NAMES[name]
    x, *_ = case.make()
    call = functools.partial(FUNCTIONS[function], case)
    expected = call(x)
    close(jax.jit(call)(x), expected)
    shapes = jax.tree.map(lambda v: (v.shape, v.dtype), expected)
    assert jax.tree.map(lambda v: (v.shape, v.dtype), jax.eval_shape(call, x)) == shapes
    batched = jax.vmap(call)(jnp.stack([x, -2 * x]))
    close(jax.tree.map(lambda v: v[0], batched), expected)
    close(jax.tree.map(lambda v: v[1], batched), call(-2 * x))
