"""`jbn.tools.tune_inference`: the least loss of running, recalibrated and weighted statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import jbn

pytestmark = pytest.mark.usefixtures("standard_promotion")
RNG = np.random.default_rng(0)
# Examples with a mean of their own each.
DATA = [
    np.float32(5 + RNG.standard_normal((8, 1, 2)) + RNG.standard_normal((8, 6, 2))) for _ in range(2)
]
WHOLE = np.concatenate(DATA).reshape(-1, 2)


class Network(nn.Module):
    """One layer with batch norm, and dropout that would show."""

    norm: jbn.Norm = jbn.plain

    @nn.compact
    def __call__(self, x, train):
        x = jbn.linen.BatchNorm(not train, norm=self.norm)(x)
        return nn.Dropout(0.5, deterministic=not train)(x)


class NNXNetwork(nnx.Module):
    """The same in NNX."""

    def __init__(self, norm=jbn.plain):
        self.norm = jbn.nnx.BatchNorm(2, norm=norm, rngs=nnx.Rngs(0))
        self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.dropout(self.norm(x))


def expected(x, alpha, mean=0.0, var=1.0):
    """Inference, in float64."""
    x = np.float64(x)
    own, own_var = x.mean(1, keepdims=True), x.var(1, keepdims=True)
    mixed = alpha * own + (1 - alpha) * mean
    mixed_var = alpha * own_var + (1 - alpha) * var + alpha * (1 - alpha) * (own - mean) ** 2
    return (x - mixed) / np.sqrt(mixed_var + 1e-5)


RUNNING = (0.0, 1.0)
RECALIBRATED = (WHOLE.mean(0), WHOLE.var(0))


def candidates(alphas):
    """What each candidate puts out, by its name."""
    statistics = {"running": RUNNING, "recalibrated": RECALIBRATED}
    return {
        (name, alpha): np.concatenate([expected(x, alpha or 0, *of) for x in DATA])
        for name, of in statistics.items()
        for alpha in (None, *alphas)
    }


def loss(model, batch):
    """The squared distance from the target, of each value."""
    options = {"train": False} if isinstance(model, nn.Module) else {}
    return (model(batch["x"], **options) - batch["target"]) ** 2


def tuned(kind, target, norm=jbn.plain, loss=loss, **options):
    """The model, and the choice where the output of one candidate is the target."""
    batches = [
        {"x": x, "target": t} for x, t in zip(DATA, np.split(np.float32(target), [8]), strict=True)
    ]
    model, variables = NNXNetwork(norm), []
    if kind == "linen":
        model = Network(norm)
        variables = [model.init(jax.random.key(0), DATA[0], train=False)]
    choice = jbn.tools.tune_inference(
        model, *variables, batches, loss=loss, calibration=batches, **options
    )
    return model, choice


@pytest.mark.parametrize("kind", ["linen", "nnx"])
@pytest.mark.parametrize(
    "best",
    [("running", None), ("running", 0.3), ("recalibrated", None), ("recalibrated", 0.3)],
    ids=str,
)
def test_the_least_loss_is_chosen(kind, best):
    outputs = candidates((0.1, 0.3))
    model, choice = tuned(kind, outputs[best], alphas=(0.1, 0.3))
    assert (choice.statistics, choice.alpha) == best
    assert list(choice.losses) == list(outputs)
    for name, output in outputs.items():
        wanted = np.mean((output - outputs[best]) ** 2)
        np.testing.assert_allclose(choice.losses[name], wanted, rtol=1e-3, atol=1e-8)
    assert choice.gain == choice.losses["running", None] - choice.losses[best]
    # What is handed back is what was chosen.
    x = DATA[0]
    y = choice.apply(x, train=False) if kind == "linen" else choice.model(x)
    np.testing.assert_allclose(y, outputs[best][:8], rtol=1e-3, atol=1e-4)
    if kind == "nnx":
        # A copy: the model is as it was, and does not see what becomes of the other.
        assert choice.model is not model and choice.variables is None
        assert model.norm.norm == jbn.plain and not model.norm.use_running_average
        choice.model.norm.mean.set_value(jnp.full(2, 7.0))
        np.testing.assert_array_equal(model.norm.mean[...], 0)


def test_a_table():
    _, choice = tuned("linen", candidates(())["recalibrated", None], alphas=())
    header, running, recalibrated, gained = str(choice).splitlines()
    assert header.split() == ["statistics", "alpha", "loss"]
    assert running.split() == ["running", f"{choice.losses['running', None]:.6g}"]
    assert recalibrated.split()[0] == "recalibrated" and recalibrated.endswith("chosen")
    assert gained.startswith(f"gained {choice.gain:.3g} of ")


def test_a_model_with_weighted_inference_is_tried_as_it_is_and_with_others():
    outputs = candidates((0.3,))
    norm = jbn.weighted_inference(0.1)
    _, choice = tuned("linen", outputs["running", 0.3], norm, alphas=(0.3,))
    assert (choice.statistics, choice.alpha) == ("running", 0.3)
    own = np.mean((candidates((0.1,))["running", 0.1] - outputs["running", 0.3]) ** 2)
    np.testing.assert_allclose(choice.losses["running", None], own, rtol=1e-4)


def test_a_scalar_counts_as_one_and_nan_is_not_chosen():
    def mean_loss(model, batch):
        y = model(batch["x"], train=False)
        return jnp.where(jnp.max(jnp.abs(y)) > 4, jnp.nan, jnp.mean(y**2))

    target = candidates(())["running", None]
    _, choice = tuned("linen", target, loss=mean_loss, alphas=())
    assert np.isnan(choice.losses["running", None]) and choice.statistics == "recalibrated"
    each = [np.mean(expected(x, 0, *RECALIBRATED) ** 2) for x in DATA]
    np.testing.assert_allclose(choice.losses["recalibrated", None], np.mean(each), rtol=1e-4)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_losses_in_half_precision_are_summed_in_float32(dtype):
    x = np.tile(DATA[0], (730, 1, 1))

    def loss(model, x):
        return (1 + 1e-3 * model(x) ** 2).astype(dtype)

    choice = jbn.tools.tune_inference(NNXNetwork(), [x], loss=loss, alphas=(0.5,))
    means = [np.mean(1 + 1e-3 * expected(x, alpha) ** 2) for alpha in (0, 0.5)]
    eps = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(list(choice.losses.values()), means, rtol=eps)
    with pytest.raises(TypeError, match="the chosen NNX model is `model`"):
        choice.apply(x)


class TestArguments:
    X = DATA[:1]

    def test_a_generator(self):
        with pytest.raises(TypeError, match="iterates over `batches` several times"):
            jbn.tools.tune_inference(NNXNetwork(), iter(self.X), loss=loss)

    def test_no_batch(self):
        with pytest.raises(ValueError, match="`batches` must hold a batch"):
            jbn.tools.tune_inference(NNXNetwork(), [], loss=loss)

    def test_alpha(self):
        with pytest.raises(ValueError, match=r"`alpha` must lie in \[0, 1\], got 2"):
            jbn.tools.tune_inference(NNXNetwork(), self.X, loss=lambda m, x: m(x), alphas=(2,))

    def test_a_norm_with_other_inference(self):
        model = NNXNetwork(jbn.inplace("leaky_relu"))
        with pytest.raises(ValueError, match=r"must be one whose inference is plain, got InPlace"):
            jbn.tools.tune_inference(model, self.X, loss=lambda m, x: m(x))

    def test_no_layer(self):
        model = nn.Dense(2)
        variables = model.init(jax.random.key(0), DATA[0])
        with pytest.raises(ValueError, match="`model` must have batch norm layers"):
            jbn.tools.tune_inference(model, variables, DATA, loss=lambda model, x: model(x))

    def test_no_loss(self):
        with pytest.raises(TypeError, match="`loss` must return a loss"):
            jbn.tools.tune_inference(NNXNetwork(), DATA, loss=lambda model, x: None)

    def test_progress(self, capsys):
        model = NNXNetwork()
        jbn.tools.tune_inference(model, self.X, loss=lambda m, x: m(x), alphas=(), progress=True)
        assert "candidates: 100%" in capsys.readouterr().err


def test_submodules_that_are_jitted_are_traced_for_each_candidate():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.BatchNorm(use_running_average=True)(nn.Dense(3)(x))

    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 3)) + 5
    losses, variables = [], None
    for block in (Block, nn.jit(Block)):
        model = nn.Sequential([block(name="block")])  # a list, so that it cannot be hashed either
        variables = variables or model.init(jax.random.key(1), x)
        choice = jbn.tools.tune_inference(
            model,
            variables,
            [x],
            loss=lambda model, x: model(x) ** 2,
            alphas=(0.1, 0.9),
            calibration=[x],
        )
        losses.append(list(choice.losses.values()))
    np.testing.assert_allclose(*losses, rtol=1e-5)
    assert len(set(losses[0])) >= 4
