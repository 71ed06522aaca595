"""`jbn.inplace`: batch norm and an activation, differentiated from the output alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jbn
import reference
from cases import CASES
from tolerance import tolerance

ACTIVATIONS = {
    "leaky_relu": jax.nn.leaky_relu,
    "elu": jax.nn.elu,
    "identity": lambda z: z,
}
NORMS = {name: jbn.inplace(name) for name in ACTIVATIONS}
by_activation = pytest.mark.parametrize("activation", ACTIVATIONS)
by_activation_quickly = pytest.mark.parametrize(
    "activation", ["leaky_relu", "elu", pytest.param("identity", marks=pytest.mark.slow)]
)
SHAPE = (8, 5, 4)


def data(dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    x = jnp.asarray(1 + 2 * rng.standard_normal(SHAPE), jnp.float32).astype(dtype)
    params = {"scale": jnp.array([1.0, -2.0, 0.3, -0.1]), "bias": jnp.array([0.3, -0.5, 0.0, 0.2])}
    dy = jnp.asarray(rng.standard_normal(SHAPE), jnp.float32)
    return x, params, jbn.init(4)[1], dy


def ours(activation, **kwargs):
    _, _, batch_stats, _ = data()

    def function(x, params):
        return NORMS[activation].apply(x, params, batch_stats, train=True, **kwargs)

    return function


def composed(activation, **kwargs):
    """Batch norm, then the activation."""
    _, _, batch_stats, _ = data()

    def function(x, params):
        y, updated = jbn.batch_norm(x, params, batch_stats, train=True, **kwargs)
        return ACTIVATIONS[activation](y), updated

    return function


def both(activation, transform, *arguments, **kwargs):
    functions = ours(activation, **kwargs), composed(activation, **kwargs)
    return tuple(jax.jit(transform(f))(*arguments) for f in functions)


def close(actual, expected, factor=4.0):
    scale = max(1.0, *(float(np.max(np.abs(v))) for v in jax.tree.leaves(expected)))
    bounds = {name: factor * value for name, value in tolerance("float32", 40).items()}
    bounds["atol"] *= scale
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **bounds), actual, expected)


def gradient(dy):
    def transform(function):
        def loss(x, params):
            y, updated = function(x, params)
            return jnp.sum(jnp.sin(y) * dy), (y, updated)

        return jax.grad(loss, (0, 1), has_aux=True)

    return transform


@by_activation
def test_values_statistics_and_gradients_are_those_of_the_composition(activation):
    x, params, _, dy = data()
    close(*both(activation, gradient(dy), x, params))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_takes_what_batch_norm_takes(case):
    x, params, batch_stats, kwargs = case.make()
    y, updated = NORMS["leaky_relu"].apply(
        x, params, batch_stats, train=True, **kwargs, **case.running()
    )
    kwargs.pop("axis")
    mask = kwargs.pop("mask", None)
    z = reference.batch_norm(x, params, axis=case.axis, mask=mask, **kwargs)
    np.testing.assert_allclose(y, np.where(z >= 0, z, 0.01 * z), **tolerance("float32", case.reduced))
    expected = reference.update_running(batch_stats, x, axis=case.axis, mask=mask, **case.running())
    for name in expected:
        np.testing.assert_allclose(updated[name], expected[name], **tolerance("float32", case.reduced))


@by_activation
def test_inference_is_batch_norm_then_the_activation(activation):
    x, params, batch_stats, _ = data()
    for dtype in (jnp.float32, jnp.bfloat16):
        y, same = NORMS[activation].apply(x.astype(dtype), params, batch_stats, train=False)
        plain, _ = jbn.batch_norm(x.astype(dtype), params, batch_stats, train=False, dtype=jnp.float32)
        assert y.dtype == dtype
        np.testing.assert_array_equal(y, ACTIVATIONS[activation](plain).astype(dtype))
        jax.tree.map(np.testing.assert_array_equal, same, batch_stats)


@pytest.mark.parametrize(
    ("norm", "activation"),
    [
        (jbn.inplace("elu", alpha=0.4), lambda z: jax.nn.elu(z, 0.4)),
        (jbn.inplace("elu", alpha=3.0), lambda z: jax.nn.elu(z, 3.0)),
        (jbn.inplace("leaky_relu", negative_slope=0.5), lambda z: jax.nn.leaky_relu(z, 0.5)),
        (jbn.inplace("leaky_relu", negative_slope=1.0), lambda z: z),
    ],
    ids=["elu 0.4", "elu 3", "leaky_relu 0.5", "leaky_relu 1"],
)
def test_other_activations(norm, activation):
    x, params, batch_stats, dy = data()

    def plain(x, params):
        y, updated = jbn.batch_norm(x, params, batch_stats, train=True)
        return activation(y), updated

    def inplace(x, params):
        return norm.apply(x, params, batch_stats, train=True)

    close(*(jax.jit(gradient(dy)(function))(x, params) for function in (inplace, plain)), factor=40)


@pytest.mark.parametrize("activation", ["leaky_relu", "elu"])
def test_where_z_is_exactly_zero(activation):
    """There leaky_relu and elu have their slope of the right-hand side."""
    x = jnp.array([[-1.0], [0.0], [1.0]] * 2)
    dy = jnp.array([[0.3], [5.0], [-2.0], [1.0], [7.0], [0.1]])
    params, batch_stats = jbn.init(1)

    def run(activate, norm):
        def function(x):
            return activate(norm.apply(x, params, batch_stats, train=True)[0])

        y, vjp = jax.vjp(function, x)
        assert y[1] == 0
        return vjp(dy)[0]

    def right_hand(z):
        return jnp.where(z >= 0, z, ACTIVATIONS[activation](z))

    close(run(lambda y: y, NORMS[activation]), run(right_hand, jbn.plain))


TRANSFORMS = {
    "jvp": lambda f: lambda x, p: jax.jvp(lambda x: f(x, p)[0], (x,), (jnp.cos(x),)),
    "linearize": lambda f: lambda x, p: jax.linearize(lambda x: f(x, p)[0], x)[1](jnp.sin(x)),
    "vmap of grad": lambda f: jax.vmap(
        jax.grad(lambda x, p: jnp.sum(f(x, p)[0] ** 3), (0, 1)), in_axes=(2, None), out_axes=0
    ),
    "gradient penalty": lambda f: jax.grad(
        lambda x, p: jnp.sum(jax.grad(lambda x: jnp.sum(jnp.sin(f(x, p)[0])))(x) ** 2), (0, 1)
    ),
    "hessian of the parameters": lambda f: (
        lambda x, p: jax.hessian(lambda p: jnp.sum(jnp.sin(f(x, p)[0])))(p)
    ),
    "checkpoint": lambda f: jax.grad(
        jax.checkpoint(lambda x, p: jnp.sum(f(x, p)[0] ** 3), policy=jbn.remat_policy), (0, 1)
    ),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@by_activation_quickly
def test_every_derivative(activation, transform):
    x, params, _, _ = data()
    if transform == "vmap of grad":
        x = jnp.stack([x, -2 * x, x**2], axis=2)
    close(*both(activation, TRANSFORMS[transform], x, params), factor=40)


@by_activation_quickly
def test_gradients_under_masks_and_of_weights(activation):
    x, params, _, dy = data()
    weights = jnp.asarray(np.random.default_rng(2).uniform(0.2, 2.0, (8, 5, 1)), jnp.float32)
    close(*both(activation, gradient(dy), x, params, mask=weights))

    def of_weights(function):
        return jax.grad(lambda w: jnp.sum(function(activation, mask=w)(x, params)[0] * dy))

    close(of_weights(ours)(weights), of_weights(composed)(weights))


def test_masked_values_that_are_not_finite_poison_nothing():
    x, params, _, dy = data()
    mask = jnp.ones((8, 5, 1), bool).at[0, 1].set(False)
    dy = jnp.where(mask, dy, 0)

    def run(function, x):
        y, vjp, updated = jax.vjp(function("leaky_relu", mask=mask), x, params, has_aux=True)
        return vjp(dy), updated, y

    actual, expected = run(ours, x.at[0, 1].set(jnp.nan)), run(composed, x)
    y, wanted = actual[-1], expected[-1]
    assert np.isnan(y[0, 1]).all()
    close((*actual[:2], jnp.where(mask, y, 0)), (*expected[:2], jnp.where(mask, wanted, 0)))


@pytest.mark.several_devices
@pytest.mark.parametrize("check_vma", [True, False])
def test_across_devices(check_vma):
    x, params, _, dy = data()
    mesh = jax.make_mesh((4,), ("i",), axis_types=(AxisType.Auto,))

    def local(x, params, dy):
        y, vjp = jax.vjp(lambda x: ours("leaky_relu", axis_name="i")(x, params)[0], x)
        return y, vjp(dy)[0]

    mapped = jax.shard_map(
        local, mesh=mesh, in_specs=(P("i"), P(), P("i")), out_specs=P("i"), check_vma=check_vma
    )
    y, vjp = jax.vjp(lambda x: composed("leaky_relu")(x, params)[0], x)
    close(jax.jit(mapped)(x, params, dy), (y, vjp(dy)[0]))


SCALES = [0.0, -0.0, 1e-30, 1e-9, -1e-7, 1e-3, -1e4]


@pytest.mark.parametrize("bias", [0.0, 0.3, -2.0])
@by_activation
def test_any_scale(activation, bias):
    """y is within a few roundings, dx too; the gradient of the scale to what y holds of x."""
    channels = len(SCALES)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((4096, channels)), jnp.float32)
    dy = jnp.asarray(rng.standard_normal(x.shape), jnp.float32)
    params = {"scale": jnp.array(SCALES, jnp.float32), "bias": jnp.full(channels, bias)}
    _, stats = jbn.init(channels)

    def run(function):
        y, vjp = jax.vjp(function, x, params)
        return y, *vjp(dy)

    y, dx, dparams = run(lambda x, p: NORMS[activation].apply(x, p, stats, train=True)[0])

    def plain(x, p):
        return ACTIVATIONS[activation](jbn.batch_norm(x, p, stats, train=True)[0])

    expected, expected_dx, expected_dparams = run(plain)
    deviation = np.abs(reference.batch_norm(x, {})).max()
    rounding = np.finfo(np.float32).eps * max(abs(bias), 1e-20)
    large = np.maximum(1, np.abs(expected))
    assert np.all(np.abs(y - expected) <= 8 * rounding * deviation + 1e-6 * large)
    assert all(np.isfinite(v).all() for v in jax.tree.leaves((y, dx, dparams)))
    if activation == "identity" or bias:  # else the side of the kink at z = 0 is a choice
        saturated = activation == "elu" and np.abs(SCALES) > 10
        compared = ~np.broadcast_to(saturated, channels)
        error = np.abs(dx - expected_dx)[:, compared]
        # At most a tenth of a deviation is lost of x, and x weighs as 1 / sqrt(4096) in its gradient.
        assert np.all(error <= 2e-3 * np.abs(expected_dx).max(0)[compared])
        close(dparams["bias"], expected_dparams["bias"])
        # A gradient of 4096 random terms is of the order of 64, and this is what rounding y leaves.
        noise = 64 * rounding / np.maximum(np.abs(SCALES), 8 * rounding)
        error = np.abs(dparams["scale"] - expected_dparams["scale"])
        assert np.all(error <= 1e-3 + 3 * noise), (error, noise)


def test_a_scale_and_bias_of_zero_learn():
    """The zero-initialized last scale of a residual block."""
    x, _, _, dy = data()
    params = {"scale": jnp.zeros(4), "bias": jnp.zeros(4)}
    expected = jax.grad(lambda p: jnp.sum(composed("identity")(x, p)[0] * dy))(params)
    actual = jax.grad(lambda p: jnp.sum(ours("identity")(x, p)[0] * dy))(params)
    close(actual, expected)
    assert np.all(np.abs(actual["scale"]) > 1e-2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_one_large_residual_is_the_output(dtype):
    x, params, _, dy = data(dtype)
    y, vjp = jax.vjp(lambda x, p: ours("leaky_relu")(x, p)[0], x, params)
    large = [leaf for leaf in jax.tree.leaves(vjp) if np.size(leaf) == x.size]
    assert [leaf.dtype for leaf in large] == [jnp.dtype(dtype)]
    np.testing.assert_array_equal(large[0], y)
    expected = jax.vjp(lambda x, p: composed("leaky_relu")(x, p)[0], x, params)[1](dy.astype(dtype))
    bound = 40 * float(jnp.finfo(dtype).eps)
    for actual, wanted in zip(
        jax.tree.leaves(vjp(dy.astype(dtype))), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(
            np.float64(actual), np.float64(wanted), atol=bound * np.abs(np.float64(wanted)).max()
        )


@pytest.mark.cpu
def test_a_step_needs_no_memory_of_the_size_of_x_but_its_results():
    x = jax.ShapeDtypeStruct((32, 8, 8, 16), jnp.float32)
    params, batch_stats = jbn.init(16)

    def step(x, params, dy):
        y, vjp = jax.vjp(
            lambda x, p: NORMS["leaky_relu"].apply(x, p, batch_stats, train=True)[0], x, params
        )
        return y, vjp(dy)

    memory = jax.jit(step).lower(x, params, x).compile().memory_analysis()
    assert memory.temp_size_in_bytes < x.size * 4 * 1.1  # the cotangent of z


def test_in_the_layers_with_interchangeable_checkpoints():
    x, _, _, _ = data()
    layer = jbn.linen.BatchNorm(use_running_average=False, norm=NORMS["elu"])
    variables = layer.init(jax.random.key(0), x)
    plain = jbn.linen.BatchNorm(use_running_average=False)
    assert jax.tree.structure(variables) == jax.tree.structure(plain.init(jax.random.key(0), x))
    y, _ = plain.apply(variables, x, mutable=["batch_stats"])
    close(layer.apply(variables, x, mutable=["batch_stats"])[0], jax.nn.elu(y))

    from flax import nnx

    module = jbn.nnx.BatchNorm(4, norm=NORMS["elu"], rngs=nnx.Rngs(0))
    close(module(x), jax.nn.elu(y))


def test_learns_as_the_composition_does():
    x, params, _, _ = data()
    target = jnp.roll(x, 1, axis=0)
    optimizer = optax.sgd(0.1)

    def trained(function):
        def step(carry, _):
            params, state = carry
            grads = jax.grad(lambda p: jnp.mean((function(x, p)[0] - target) ** 2))(params)
            updates, state = optimizer.update(grads, state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), None, length=20)[0][0]

    close(trained(ours("leaky_relu")), trained(composed("leaky_relu")))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"activation": "relu"}, "`activation` must be one of"),
        ({"negative_slope": 0.0}, r"`negative_slope` must lie in \(0, 1\]"),
        ({"negative_slope": 2.0}, r"`negative_slope` must lie in \(0, 1\]"),
        ({"activation": "elu", "alpha": -1.0}, "`alpha` must be a finite number"),
    ],
    ids=str,
)
def test_wrong_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        jbn.inplace(**kwargs)


def test_complex_input_is_refused():
    params, batch_stats = jbn.init(3)
    with pytest.raises(TypeError, match="`x` must be real"):
        NORMS["elu"].apply(jnp.ones((4, 3), jnp.complex64), params, batch_stats, train=True)


def test_elu_in_half_precision_under_strict_promotion():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((8, 3)), jnp.bfloat16)
    norm = jbn.inplace("elu")
    params, stats = norm.init(3)
    gradient = jax.grad(lambda x: norm.apply(x, params, stats, train=True)[0].astype(jnp.float32).sum())
    assert gradient(x).dtype == jnp.bfloat16


def test_a_slope_that_float32_has_not():
    with pytest.raises(ValueError, match="`negative_slope` must lie in"):
        jbn.inplace(negative_slope=1e-46)
    with pytest.raises(ValueError, match="`alpha` must be a finite number"):
        jbn.inplace("elu", alpha=1e-46)


@pytest.mark.parametrize(
    "norm", [jbn.inplace(), jbn.frozen(jbn.inplace()), jbn.inplace("elu")], ids=repr
)
def test_the_slope_at_exactly_zero_in_inference_too(norm):
    params, batch_stats = norm.init(1)
    x = jnp.zeros((2, 1))
    dx = jax.grad(lambda x: jnp.sum(norm.apply(x, params, batch_stats, train=False)[0]))(x)
    np.testing.assert_allclose(dx, jax.lax.rsqrt(1 + 1e-5), rtol=1e-6)


@pytest.mark.parametrize("activation", ["leaky_relu", "elu"])
def test_derivatives_in_inference_are_those_of_the_activation(activation):
    x, params, batch_stats, _ = data()

    def loss(norm, activate):
        return lambda x: jnp.sum(jnp.sin(activate(norm.apply(x, params, batch_stats, train=False)[0])))

    ours = loss(NORMS[activation], lambda y: y)
    plain = loss(jbn.plain, ACTIVATIONS[activation])
    close(jax.jit(jax.hessian(ours))(x[:2, :2]), jax.jit(jax.hessian(plain))(x[:2, :2]))
