"""The forms of `jbn.inplace`: y leads back to z, and z to x - mean."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jbn._form import Affine, Form
from jbn._statistics import batch_moments
from jbn.ops.reduction import Reduction
from jbn.variants.invertible import FORMS

Z = np.concatenate([np.linspace(-5, 5, 41), [-0.0, 1e-6, -1e-6]]).astype(np.float32)
ACTIVATIONS = {
    "identity": lambda z: z,
    "leaky_relu": lambda z: jax.nn.leaky_relu(z, 0.3),
    "elu": lambda z: jax.nn.elu(z, 0.3),
}
by_name = pytest.mark.parametrize("name", FORMS)


@by_name
def test_the_inverse_and_the_slope(name):
    form, parameter = FORMS[name](0.3), jnp.float32(0.3)
    y = form.activation(jnp.asarray(Z))
    np.testing.assert_allclose(y, ACTIVATIONS[name](Z), atol=1e-6)
    # Near -0.3 elu has lost what lies behind it.
    np.testing.assert_allclose(form.inverse(y, parameter), Z, rtol=1e-5, atol=2e-5)
    slope = form.slope((y, None, None, parameter))
    if name == "identity":
        assert slope is None
    else:
        some = Z != 0
        np.testing.assert_allclose(
            slope[some], jax.vmap(jax.grad(ACTIVATIONS[name]))(Z)[some], atol=1e-6
        )


@by_name
def test_what_is_kept_leads_back_to_the_deviation(name):
    x = jnp.asarray(3 + np.random.default_rng(0).standard_normal((40, 3)), jnp.float32)
    reduction, form = Reduction((0,)), FORMS[name](0.3)
    m = batch_moments(reduction, x, None, None)
    affine = Affine(jnp.array([1.0, -0.5, 2.0]), jnp.array([0.1, 0.0, -1.0]), 1e-5)
    z = (x - m.mean[None]) * (affine.scale * jax.lax.rsqrt(m.var + 1e-5))[None] + affine.bias[None]
    kept = form.keep(reduction, x, form.activation(z), m, affine)
    plain = Form().deviation(reduction, Form().keep(reduction, x, z, m, affine))
    np.testing.assert_allclose(form.deviation(reduction, kept), plain, atol=2e-5)


def test_a_scale_that_rounding_would_swallow_counts_as_a_few_roundings():
    reduction = Reduction((0,))
    m = batch_moments(reduction, jnp.ones((4, 3)), None, None)
    affine = Affine(jnp.array([1.0, 1e-9, -1e-9]), jnp.array([0.0, 1.0, 1.0]), 1e-5)
    scale = FORMS["identity"](0.0).training_scale(reduction, affine, m, jnp.bfloat16)
    assert scale[0] == 1
    np.testing.assert_allclose(scale[1:], [8 * 2**-7, -8 * 2**-7])
