"""Recalibration against fvcore's `update_bn_stats`, and where torch's `update_bn` is another thing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jbn

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("standard_promotion")
RNG = np.random.default_rng(0)
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


class Network(nn.Module):
    """Dense, batch norm, tanh, dropout, dense, batch norm."""

    @nn.compact
    def __call__(self, x):
        x = jbn.linen.BatchNorm(use_running_average=True)(nn.Dense(5)(x))
        x = nn.Dropout(0.5, deterministic=True)(jnp.tanh(x))
        return jbn.linen.BatchNorm(use_running_average=True)(nn.Dense(4)(x))


def batches(*sizes):
    """Batches that are not drawn alike."""
    return [np.float32(i + (1 + i) * RNG.standard_normal((n, 3))) for i, n in enumerate(sizes)]


@pytest.fixture
def pair():
    """A Linen network with its variables, and torch's with the same parameters."""
    variables = Network().init(jax.random.key(0), np.ones((1, 3), np.float32))
    layers = [torch.nn.Linear(3, 5), torch.nn.BatchNorm1d(5), torch.nn.Tanh(), torch.nn.Dropout(0.0)]
    layers += [torch.nn.Linear(5, 4), torch.nn.BatchNorm1d(4)]
    model = torch.nn.Sequential(*layers)
    with torch.no_grad():
        for index, name in ((0, "Dense_0"), (4, "Dense_1")):
            dense = variables["params"][name]
            model[index].weight.copy_(torch.tensor(np.asarray(dense["kernel"]).T))
            model[index].bias.copy_(torch.tensor(np.asarray(dense["bias"])))
    return variables, model


def of_jbn(variables, xs, **options):
    stats = jbn.tools.recalibrate(Network(), variables, xs, **options)["batch_stats"]
    return [stats[layer][name] for layer in ("BatchNorm_0", "BatchNorm_1") for name in ("mean", "var")]


def of_torch(model):
    norms = [layer for layer in model if isinstance(layer, torch.nn.BatchNorm1d)]
    return [v.numpy() for norm in norms for v in (norm.running_mean, norm.running_var)]


@pytest.mark.parametrize("sizes", [(8, 8, 8), (16, 5, 16)], ids=str)
def test_fvcore(pair, sizes):
    update_bn_stats = pytest.importorskip("fvcore.nn.precise_bn").update_bn_stats
    variables, model = pair
    xs = batches(*sizes)
    update_bn_stats(model.train(), [torch.tensor(x) for x in xs], num_iters=len(xs), progress="none")
    for ours, theirs in zip(of_jbn(variables, xs), of_torch(model), strict=True):
        np.testing.assert_allclose(ours, theirs, **CLOSE)


def test_torch_weighs_batches_alike_and_leaves_out_the_variance_between_them(pair):
    variables, model = pair
    xs = batches(8, 8, 8)
    torch.optim.swa_utils.update_bn([torch.tensor(x) for x in xs], model.train())
    hidden = [x @ np.asarray(variables["params"]["Dense_0"]["kernel"]) for x in xs]
    between = np.var([x.mean(0) for x in hidden], axis=0)
    theirs_mean, theirs_var, *_ = of_torch(model)
    ours_mean, ours_var, *_ = of_jbn(variables, xs)
    np.testing.assert_allclose(ours_mean, theirs_mean, **CLOSE)
    np.testing.assert_allclose(ours_var, 7 / 8 * theirs_var + between, **CLOSE)
    assert (between > 0.1 * theirs_var).any()

    xs = batches(24, 3)
    torch.optim.swa_utils.update_bn([torch.tensor(x) for x in xs], model.train())
    theirs, ours = of_torch(model)[0], of_jbn(variables, xs)[0]
    means = [(x @ np.asarray(variables["params"]["Dense_0"]["kernel"])).mean(0) for x in xs]
    np.testing.assert_allclose(theirs, np.average(means, 0), **CLOSE)
    np.testing.assert_allclose(ours, np.average(means, 0, weights=[24, 3]), **CLOSE)
