"""What the variants that change the moments share: one operation, compiled once."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jbn
from jbn import _warnings
from jbn._masking import as_weights
from jbn.variants import by_moments

X = jnp.asarray(1 + np.random.default_rng(0).standard_normal((8, 4)), jnp.float32)
PARAMS, STATS = jbn.init(4)


@dataclasses.dataclass(frozen=True)
class Doubled(by_moments.ByMoments):
    """Divides by two deviations, and notes what it is called with."""

    name: str = ""
    seen: list = dataclasses.field(default_factory=list, compare=False)

    def in_training(self, x, params, batch_stats, *, average, **options):
        self.seen.append(average)

        def statistics(m, params):
            return dataclasses.replace(m, var=4 * m.var), params

        y, m = by_moments.normalized_by(statistics, x, params, **options)
        return y, {"mean": m.mean, "var": m.var}


def test_normalizes_by_what_is_made_of_the_moments():
    y, stats = Doubled().apply(X, PARAMS, STATS, train=True, epsilon=1e-12)
    m = jbn.moments(X)
    np.testing.assert_allclose(
        y, (X - m.mean[None]) / (2 * jnp.sqrt(m.var)[None]), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_array_equal(stats["var"], m.var)


def test_inference_and_a_traced_flag():
    norm = Doubled()
    expected, _ = jbn.batch_norm(X, PARAMS, STATS, train=False)
    np.testing.assert_array_equal(norm.apply(X, PARAMS, STATS, train=False)[0], expected)
    assert not norm.seen
    flagged = jax.jit(lambda flag: norm.apply(X, PARAMS, STATS, train=flag)[0])
    np.testing.assert_allclose(flagged(False), expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(flagged(True), norm.apply(X, PARAMS, STATS, train=True)[0], 1e-6, 1e-6)


def test_is_traced_once_for_all_arrays_and_again_for_what_decides_the_program():
    norm = Doubled("counted")
    for x, momentum, epsilon in ((X, 0.9, 1e-5), (2 * X, 0.8, 1e-3)):
        norm.apply(x, PARAMS, STATS, train=True, axis=[-1], momentum=momentum, epsilon=epsilon)
    assert len(norm.seen) == 1
    with _warnings.initializing():
        norm.apply(X, PARAMS, STATS, train=True)
    norm.apply(X, PARAMS, STATS, train=True, mask=np.ones((8, 1)), dtype=jnp.bfloat16)
    assert len(norm.seen) == 3


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"params": {"gamma": 1.0}}, "`params` may hold 'scale' and 'bias'"),
        ({"batch_stats": {}}, "`batch_stats` must be a mapping with 'mean' and 'var'"),
        ({"mask": -np.ones((8, 1))}, "`mask` must be boolean or weights >= 0"),
        ({"axis": 5}, "`axis` names the feature axis"),
        ({"epsilon": 0.0}, "`epsilon` must be a positive finite number"),
        ({"epsilon": jnp.asarray(-1.0)}, "`epsilon` must be a positive finite number"),
        ({"momentum": jnp.asarray(2.0)}, "`momentum` must lie in"),
        ({"running_variance": "sample"}, "`running_variance` must be one of"),
        ({"axis_index_groups": [[0]]}, "`axis_index_groups` divides the devices"),
    ],
    ids=str,
)
def test_wrong_arguments_are_those_of_batch_norm(changed, message):
    arguments = {"params": PARAMS, "batch_stats": STATS, "train": True, **changed}
    with pytest.raises(ValueError, match=message):
        Doubled().apply(X, **arguments)


def test_the_gradient_in_half_precision_is_rounded_once():
    x, dy = X.astype(jnp.bfloat16), jnp.full(X.shape, 1000, jnp.bfloat16).at[0].set(1010)
    mask = as_weights(jnp.ones((8, 1), bool), x)

    def run(x, dtype):
        return by_moments.normalized_by(
            lambda m, params: (m, params), x, PARAMS, axis=(1,), mask=mask, dtype=dtype
        )[0]

    half = jax.vjp(lambda x: run(x, jnp.bfloat16), x)[1](dy)[0]
    wide = jax.vjp(lambda x: run(x, jnp.float32), x.astype(jnp.float32))[1](dy.astype(jnp.float32))[0]
    np.testing.assert_array_equal(half, wide.astype(jnp.bfloat16))
