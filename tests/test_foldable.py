"""Which variants of batch norm are plain in inference, and the features of the layers."""

import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import jbn
from jbn.tools.folding.foldable import features, is_affine

X = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
AFFINE = [
    jbn.plain,
    jbn.ghost(2),
    jbn.renorm(),
    jbn.streaming(),
    jbn.frozen(),
    jbn.frozen(jbn.ghost(2), trainable_params=True),
]
OTHERS = [
    jbn.inplace("leaky_relu"),
    jbn.domains(2),
    jbn.conditional(),
    jbn.timesteps(3),
    jbn.batch_group(2),
    jbn.weighted_inference(0.5),
    jbn.frozen(jbn.batch_group(2)),
    jbn.frozen(jbn.inplace("elu")),
]


@pytest.mark.parametrize("norm", AFFINE, ids=str)
def test_those_that_are_plain_in_inference(norm):
    assert is_affine(norm)
    params, stats = norm.init(4)
    stats = {**stats, "mean": X[0], "var": X[1] ** 2 + 1}
    params = {"scale": X[2], "bias": X[3]}
    y, _ = norm.apply(X, params, stats, train=False)
    np.testing.assert_array_equal(y, jbn.plain.apply(X, params, stats, train=False)[0])


@pytest.mark.parametrize("norm", OTHERS, ids=str)
def test_those_that_are_not(norm):
    assert not is_affine(norm)


def test_a_norm_of_ones_own_is_not_known_to_be():
    class Own(jbn.Norm):
        def apply(self, x, params, batch_stats, *, train, **options):
            y, batch_stats = super().apply(x, params, batch_stats, train=train, **options)
            return 2 * y, batch_stats

    assert not is_affine(Own())


def test_features_of_linen_and_nnx():
    def made(build, *args):
        return nnx.eval_shape(lambda: build(*args, rngs=nnx.Rngs(0)))

    assert features(nn.Dense(3)) == features(made(nnx.Linear, 2, 3)) == (3,)
    assert features(nn.Conv(3, (2, 2))) == features(made(nnx.Conv, 2, 3, (2, 2))) == (3,)
    general = made(nnx.LinearGeneral, 2, (3, 4))
    assert features(nn.DenseGeneral((3, 4))) == features(general) == (3, 4)
