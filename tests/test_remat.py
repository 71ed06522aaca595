"""`jbn.remat_policy`: what a checkpointed network keeps, and that it computes the same."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import jbn
from jbn._remat import MOMENTS

N, C, LAYERS = 16, 8, 3


def network(kernels, params, batch_stats, x, axis_name=None):
    for kernel in kernels:
        x = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x, batch_stats = jbn.batch_norm(x, params, batch_stats, train=True, axis_name=axis_name)
        x = jax.nn.relu(x)
    return x, batch_stats


def arguments():
    rng = np.random.default_rng(0)
    kernels = [jnp.asarray(0.2 * rng.standard_normal((3, 3, C, C)), jnp.float32) for _ in range(LAYERS)]
    x = jnp.asarray(rng.standard_normal((N, 6, 6, C)), jnp.float32)
    return kernels, *jbn.init(C), x


def gradient(function):
    def loss(kernels, params, batch_stats, x):
        y, updated = function(kernels, params, batch_stats, x)
        return jnp.sum(jnp.sin(y)), updated

    return jax.jit(jax.grad(loss, (0, 1, 3), has_aux=True))


checkpointed = jax.checkpoint(network, policy=jbn.remat_policy)


def saved(function):
    """How many different arrays of the size of the activations the backward pass keeps.

    One that passes through several parts of a program is listed once for each, as one buffer.
    """
    _, vjp = jax.vjp(lambda *a: function(*a)[0], *arguments())
    large = (leaf for leaf in jax.tree.leaves(vjp) if np.shape(leaf) == (N, 6, 6, C))
    return len({np.asarray(leaf).tobytes() for leaf in large})


def test_gradients_are_the_same():
    expected = gradient(network)(*arguments())
    actual = gradient(checkpointed)(*arguments())
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max()),
        actual,
        expected,
    )


def test_one_tensor_per_layer_is_kept():
    assert saved(checkpointed) == LAYERS + 1  # the input and each convolution's output
    assert saved(network) >= 2 * LAYERS


def reductions(jaxpr):
    """Reductions of arrays of four dimensions, in all parts of a jaxpr."""
    found = 0
    for eqn in jaxpr.eqns:
        found += eqn.primitive.name == "reduce_sum" and eqn.invars[0].aval.ndim == 4
        for value in jax.tree.leaves(
            list(eqn.params.values()), is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                found += reductions(inner)
    return found


def test_the_moments_are_not_made_again():
    def count(function):
        jaxpr = jax.make_jaxpr(gradient(function))(*arguments()).jaxpr
        return reductions(jaxpr)

    everything = jax.checkpoint(network)  # its policy saves nothing
    assert count(checkpointed) == count(network)
    assert count(everything) > count(network)


def test_the_moments_carry_a_name_for_other_policies():
    policy = jax.checkpoint_policies.save_only_these_names(MOMENTS)
    function = jax.checkpoint(network, policy=policy)
    _, vjp = jax.eval_shape(lambda *a: jax.vjp(lambda *b: function(*b)[0], *a), *arguments())
    assert sum(leaf.shape == (C,) for leaf in jax.tree.leaves(vjp)) >= 2 * LAYERS
    assert saved(function) == 1  # the input


def test_collectives_are_not_made_again():
    mapped = {}
    for name, function in {"plain": network, "checkpointed": checkpointed}.items():
        call = (
            functools.partial(function, axis_name="i")
            if name == "plain"
            else jax.checkpoint(functools.partial(network, axis_name="i"), policy=jbn.remat_policy)
        )
        vmapped = jax.vmap(call, axis_name="i", in_axes=(None, None, None, 0))
        kernels, params, batch_stats, x = arguments()
        mapped[name] = gradient(vmapped)(kernels, params, batch_stats, x.reshape(4, -1, *x.shape[1:]))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max()),
        mapped["checkpointed"],
        mapped["plain"],
    )


@pytest.mark.usefixtures("standard_promotion")
def test_with_linen_and_nnx():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(C, (3, 3), use_bias=False)(x)
            return nn.relu(jbn.linen.BatchNorm(use_running_average=False)(x))

    x = arguments()[-1]
    variables = Block().init(jax.random.key(0), x)

    def linen(block):
        def loss(params):
            y, _ = block.apply({**variables, "params": params}, x, mutable=["batch_stats"])
            return jnp.sum(jnp.sin(y))

        return jax.jit(jax.grad(loss))(variables["params"])

    rematerialized = nn.remat(Block, policy=jbn.remat_policy)()
    expected = linen(Block())
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        linen(rematerialized),
        expected,
    )

    module = jbn.nnx.BatchNorm(C, rngs=nnx.Rngs(0))

    def run(module, x):
        return jnp.sum(jnp.sin(nnx.relu(module(x))))

    gradients = [
        nnx.grad(f, argnums=1)(module, x) for f in (run, nnx.remat(run, policy=jbn.remat_policy))
    ]
    np.testing.assert_allclose(*gradients, rtol=1e-5, atol=1e-5)
