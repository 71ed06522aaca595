"""`Moments`, a pytree, and the one program that computes them."""

import jax
import jax.numpy as jnp
import numpy as np

import jbn
from jbn._statistics import batch_moments
from jbn.ops.reduction import Reduction

X = jnp.asarray(np.random.default_rng(0).standard_normal((6, 4)), jnp.float32)


def test_a_pytree_of_four_with_what_is_not_known_left_out():
    m = jax.jit(jbn.moments)(X)
    assert isinstance(m, jbn.Moments)
    assert [v.shape for v in jax.tree.leaves(m)] == [(4,)] * 4
    assert len(jax.tree.leaves(jbn.Moments(m.mean, m.var))) == 2
    doubled = jax.tree.map(lambda v: 2 * v, m)
    np.testing.assert_array_equal(doubled.mean, 2 * m.mean)


def test_it_is_traced_once_for_all_that_call_it():
    before = batch_moments._cache_size()
    for _ in range(2):
        batch_moments(Reduction((0,)), X[:3], None, None)
    assert batch_moments._cache_size() <= before + 1


def test_half_precision_gives_single_precision():
    m = jbn.moments(X.astype(jnp.bfloat16), mask=jnp.ones((6, 1), bool))
    assert {v.dtype for v in jax.tree.leaves(m)} == {jnp.dtype("float32")}
