"""`jbn.tools.recalibrate`: population statistics against NumPy, in Linen and NNX, whole or sharded."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from flax.core import FrozenDict
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jbn
from tolerance import tolerance

pytestmark = pytest.mark.usefixtures("standard_promotion")
RNG = np.random.default_rng(0)
# Batches of two sizes that are not drawn alike.
BATCHES = [np.float32(i + (1 + i) * RNG.standard_normal((n, 3))) for i, n in enumerate((6, 6, 11, 6))]
WHOLE = np.float64(np.concatenate(BATCHES))
# Of one size, where that does not matter: one program less.
TWO = BATCHES[:2]
WHOLE_OF_TWO = np.float64(np.concatenate(TWO))
CLOSE = tolerance("float32", 1000)


def close(actual, expected, **bounds):
    np.testing.assert_allclose(actual, expected, **(bounds or CLOSE))


class Network(nn.Module):
    """Two layers with batch norm, jbn's and Flax's, and dropout between."""

    norm: jbn.Norm = jbn.plain
    axis_name: str | None = None
    running_variance: str = "biased"

    @nn.compact
    def __call__(self, x, train):
        x = jbn.linen.BatchNorm(
            not train,
            norm=self.norm,
            axis_name=self.axis_name,
            running_variance=self.running_variance,
            name="first",
        )(x)
        x = nn.Dropout(0.5, deterministic=not train)(jnp.tanh(x))
        return nn.BatchNorm(use_running_average=not train, axis_name=self.axis_name, name="second")(x)


class NNXNetwork(nnx.Module):
    """The same in NNX."""

    def __init__(self, **options):
        rngs = nnx.Rngs(0)
        first = jbn.nnx.BatchNorm(3, rngs=rngs, **options)
        self.layers = nnx.List([first, nnx.Dropout(0.5, rngs=rngs), nnx.BatchNorm(3, rngs=rngs)])

    def __call__(self, x):
        first, dropout, second = self.layers
        return second(dropout(jnp.tanh(first(x))))


def inference(model, x):
    return model(x, train=False)


def started(model=None):
    model = Network() if model is None else model
    return model, model.init(jax.random.key(0), BATCHES[0], train=False)


def normalized(x, mean, var):
    return (x - mean) / np.sqrt(var + 1e-5)


def of_network(layer_by_layer):
    """Means and variances of both layers' inputs, in float64."""
    mean, var = WHOLE.mean(0), WHOLE.var(0)
    if layer_by_layer:
        hidden = np.tanh(normalized(WHOLE, mean, var))
    else:
        each = [np.float64(x) for x in BATCHES]
        hidden = np.concatenate([np.tanh(normalized(x, x.mean(0), x.var(0))) for x in each])
    return mean, var, hidden.mean(0), hidden.var(0)


def recalibrated(model=None, batches=BATCHES, call=inference, **options):
    model, variables = started(model)
    return jbn.tools.recalibrate(model, variables, batches, call=call, **options)["batch_stats"]


def values(stats):
    return [stats[layer][name] for layer in ("first", "second") for name in ("mean", "var")]


@pytest.mark.parametrize("layer_by_layer", [False, True])
class TestPopulation:
    def test_linen(self, layer_by_layer):
        _, variables = started()
        stats = recalibrated(layer_by_layer=layer_by_layer)
        assert jax.tree.map(jnp.shape, stats) == jax.tree.map(jnp.shape, variables["batch_stats"])
        for actual, expected in zip(values(stats), of_network(layer_by_layer), strict=True):
            close(actual, expected)

    def test_nnx_in_place(self, layer_by_layer):
        model = NNXNetwork()
        before = nnx.state(model)
        structure = nnx.graphdef(model)
        assert jbn.tools.recalibrate(model, BATCHES, layer_by_layer=layer_by_layer) is None
        first, dropout, second = model.layers
        actual = [v[...] for layer in (first, second) for v in (layer.mean, layer.var)]
        for value, expected in zip(actual, of_network(layer_by_layer), strict=True):
            close(value, expected)
        # Nothing else: mode, structure, the random keys.
        assert not first.use_running_average and not dropout.deterministic
        assert nnx.graphdef(model) == structure
        others = nnx.filter_state(before, nnx.Not(nnx.BatchStat))
        now = nnx.state(model, nnx.Not(nnx.BatchStat))
        assert all((a == b).all() for a, b in zip(*map(jax.tree.leaves, (others, now)), strict=True))


def test_unbiased_is_of_the_number_of_all_values():
    stats = recalibrated(Network(running_variance="unbiased"), TWO)
    close(stats["first"]["var"], WHOLE_OF_TWO.var(0, ddof=1))


@pytest.mark.parametrize("kind", ["linen", pytest.param("nnx", marks=pytest.mark.slow)])
def test_masks_count_each_channel(kind):
    masks = [RNG.random(x.shape) < 0.5 for x in BATCHES]
    masks[0][:, 1] = False
    batches = [(np.where(m, x, np.nan), m) for x, m in zip(BATCHES, masks, strict=True)]
    if kind == "linen":
        layer = jbn.linen.BatchNorm(use_running_average=True)
        variables = layer.init(jax.random.key(0), BATCHES[0])
        call = lambda layer, batch: layer(batch[0], mask=batch[1])  # noqa: E731
        stats = jbn.tools.recalibrate(layer, variables, batches, call=call)["batch_stats"]
    else:
        layer = jbn.nnx.BatchNorm(3, rngs=nnx.Rngs(0))
        jbn.tools.recalibrate(layer, batches, call=lambda layer, b: layer(b[0], mask=b[1]))
        stats = {"mean": layer.mean[...], "var": layer.var[...]}
    mask = np.concatenate(masks)
    for channel in range(3):
        present = WHOLE[mask[:, channel], channel]
        close(stats["mean"][channel], present.mean())
        close(stats["var"][channel], present.var())


NORMS = {
    "ghost": jbn.ghost(groups=2),
    "renorm": jbn.renorm(**jbn.ioffe_warmup()),
    "frozen": jbn.frozen(),
    "frozen_ghost": jbn.frozen(jbn.ghost(groups=2)),
    "streaming": jbn.streaming(),
    "inplace": jbn.inplace("leaky_relu"),
    "weighted": jbn.weighted_inference(0.5),
}


class Norms(nn.Module):
    """Each norm beside the others, and a plain one behind it."""

    @nn.compact
    def __call__(self, x):
        for name, norm in NORMS.items():
            y = jbn.linen.BatchNorm(use_running_average=True, norm=norm, name=name)(x)
            jbn.linen.BatchNorm(use_running_average=True, name=f"behind_{name}")(y)


def test_every_norm_has_the_statistics_of_all_values_and_normalizes_by_those_of_the_batch():
    variables = Norms().init(jax.random.key(0), BATCHES[0])
    new = jbn.tools.recalibrate(Norms(), variables, TWO)["batch_stats"]
    assert jax.tree.structure(new) == jax.tree.structure(variables["batch_stats"])
    assert new["renorm"]["steps"] == 0
    behind = np.concatenate([normalized(x, x.mean(0), x.var(0)) for x in map(np.float64, TWO)])
    for name in NORMS:
        close(new[name]["mean"], WHOLE_OF_TWO.mean(0))
        close(new[name]["var"], WHOLE_OF_TWO.var(0))
        expected = np.where(behind < 0, 0.01 * behind, behind) if name == "inplace" else behind
        close(new[f"behind_{name}"]["var"], expected.var(0))


def test_groups_of_channels():
    batches = [np.concatenate([x, x[:, :1]], 1) for x in TWO]
    layer = jbn.nnx.BatchNorm(4, norm=jbn.batch_group(2), rngs=nnx.Rngs(0))
    jbn.tools.recalibrate(layer, batches)
    whole = np.concatenate(batches).reshape(-1, 2, 2)
    close(layer.mean[...], whole.mean((0, 2)))
    close(layer.var[...], whole.var((0, 2)))


def test_sets_of_domains_and_steps():
    layer = jbn.nnx.BatchNorm(3, norm=jbn.domains(3), rngs=nnx.Rngs(0))
    batches = [(BATCHES[n], domain) for n, domain in ((0, 0), (1, 1), (3, 0))]
    jbn.tools.recalibrate(layer, batches, call=lambda layer, b: layer(b[0], domain=b[1]))
    close(layer.var[0], np.concatenate([BATCHES[0], BATCHES[3]]).var(0))
    close(layer.mean[1], BATCHES[1].mean(0))
    np.testing.assert_array_equal(layer.var[2], 1)  # no batch of that domain
    layer = jbn.nnx.BatchNorm(3, norm=jbn.timesteps(2), rngs=nnx.Rngs(0))

    def steps(layer, x):
        return [layer(x, step=0), layer(2 * x, step=1), layer(2 * x, step=2)]

    jbn.tools.recalibrate(layer, TWO, call=steps)
    close(layer.var[...], [WHOLE_OF_TWO.var(0), 4 * WHOLE_OF_TWO.var(0)])


def test_domains_that_mix_in_a_batch_are_refused():
    layer = jbn.nnx.BatchNorm(3, norm=jbn.domains(3), rngs=nnx.Rngs(0))
    call = lambda layer, x: layer(x, domain=jnp.zeros(len(x), int))  # noqa: E731
    with pytest.raises(ValueError, match="`domain` may be an index for each example with"):
        jbn.tools.recalibrate(layer, BATCHES, call=call)


class Blocks(nn.Module):
    """Batch norm in a scan over layers, under remat, and a layer that is called twice."""

    @nn.compact
    def __call__(self, x):
        class Block(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                return 2 * x + jbn.linen.BatchNorm(use_running_average=True)(x), None

        axes = {"params": 0, "batch_stats": 0}
        scan = nn.scan(nn.remat(Block), variable_axes=axes, split_rngs={"params": True}, length=3)
        x, _ = scan(name="scan")(x, None)
        twice = jbn.linen.BatchNorm(use_running_average=True, name="twice")
        return twice(x) + twice(-x)


@pytest.mark.parametrize("layer_by_layer", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_lifted_transformations_and_shared_layers(layer_by_layer):
    variables = Blocks().init(jax.random.key(0), BATCHES[0])
    options = {"layer_by_layer": layer_by_layer}
    new = jbn.tools.recalibrate(Blocks(), variables, TWO, **options)["batch_stats"]
    parts = [WHOLE_OF_TWO] if layer_by_layer else [np.float64(x) for x in TWO]
    scanned = new["scan"]["BatchNorm_0"]
    for row in range(3):
        whole = np.concatenate(parts)
        close(scanned["mean"][row], whole.mean(0), rtol=1e-5, atol=1e-5)
        close(scanned["var"][row], whole.var(0), rtol=1e-5, atol=1e-5)
        parts = [2 * x + normalized(x, x.mean(0), x.var(0)) for x in parts]
    whole = np.concatenate(parts)
    close(new["twice"]["mean"], 0, atol=1e-4)
    close(new["twice"]["var"], (whole**2).mean(0), rtol=1e-5)


class TestWhatDoesNotCount:
    def test_a_batch_that_is_not_finite(self):
        bad = BATCHES[1].copy()
        bad[0, 1] = np.nan
        stats = recalibrated(batches=[BATCHES[0], bad, *BATCHES[2:]])["first"]
        close(np.delete(stats["var"], 1), np.delete(WHOLE.var(0), 1))
        close(stats["var"][1], np.concatenate([BATCHES[0], *BATCHES[2:]])[:, 1].var())

    def test_old_statistics_that_are_not_finite(self):
        model, variables = started()
        broken = jax.tree.map(lambda v: v * np.nan, variables["batch_stats"])
        for layer_by_layer in (False, True):
            new = jbn.tools.recalibrate(
                model,
                {**variables, "batch_stats": broken},
                BATCHES,
                call=inference,
                layer_by_layer=layer_by_layer,
            )
            for actual, expected in zip(
                values(new["batch_stats"]), of_network(layer_by_layer), strict=True
            ):
                close(actual, expected)

    @pytest.mark.parametrize("kind", ["linen", "nnx"])
    def test_layers_that_nothing_reaches_are_named(self, kind):
        if kind == "linen":
            model, variables = started()
            bad = np.full((6, 3), np.nan, np.float32)
            with pytest.warns(UserWarning, match="value reached first, second: the statistics stay"):
                new = jbn.tools.recalibrate(model, variables, [bad], call=inference)
            np.testing.assert_array_equal(new["batch_stats"]["second"]["var"], 1)
        else:
            model = NNXNetwork()
            with pytest.warns(
                UserWarning, match="no finite value reached layers/2: the statistics stay"
            ):
                jbn.tools.recalibrate(model, TWO, call=lambda model, x: model.layers[0](x))
            np.testing.assert_array_equal(model.layers[2].var[...], 1)
            close(model.layers[0].var[...], WHOLE_OF_TWO.var(0))

    def test_counts_stay(self):
        layer = jbn.linen.BatchNorm(use_running_average=True, momentum=None)
        variables = layer.init(jax.random.key(0), BATCHES[0])
        stats = jbn.tools.recalibrate(layer, variables, TWO)["batch_stats"]
        np.testing.assert_array_equal(stats["count"], 0)
        close(stats["var"], WHOLE_OF_TWO.var(0))


class TestData:
    @pytest.mark.parametrize("wrong", [BATCHES[0], {"x": BATCHES}, None], ids=["array", "dict", "None"])
    def test_no_batches(self, wrong):
        with pytest.raises(TypeError, match="`batches` must be a list of batches"):
            recalibrated(batches=wrong)

    def test_none_at_all(self):
        model = NNXNetwork()
        with pytest.raises(ValueError, match="`batches` must hold a batch, got none in pass 1"):
            jbn.tools.recalibrate(model, [])
        np.testing.assert_array_equal(model.layers[0].mean[...], 0)

    def test_what_can_be_iterated_once(self):
        close(recalibrated(batches=iter(BATCHES))["first"]["var"], WHOLE.var(0))
        with pytest.raises(TypeError, match="`layer_by_layer` iterates over `batches` several times"):
            recalibrated(batches=iter(BATCHES), layer_by_layer=True)

    def test_a_failing_batch_leaves_a_model_as_it_was(self):
        model = NNXNetwork()
        with pytest.raises(ValueError, match="size of the feature axes"):
            jbn.tools.recalibrate(model, [BATCHES[0], np.ones((2, 5), np.float32)])
        np.testing.assert_array_equal(model.layers[0].mean[...], 0)
        assert not hasattr(model.layers[0], "total_mean")

    def test_a_model_without_batch_norm(self):
        model = nn.Dense(2)
        variables = model.init(jax.random.key(0), BATCHES[0])
        with pytest.raises(ValueError, match="`model` must have batch norm layers"):
            jbn.tools.recalibrate(model, variables, BATCHES)
        with pytest.raises(TypeError, match="`variables` must be Linen's"):
            jbn.tools.recalibrate(model, None, BATCHES)

    def test_what_is_no_array(self):
        model, variables = started()
        with pytest.raises(TypeError, match="a batch must hold arrays of JAX or NumPy, got str"):
            jbn.tools.recalibrate(model, variables, [(BATCHES[0], "name")], call=inference)

    def test_frozen_dicts_stay_frozen(self):
        model, variables = started()
        new = jbn.tools.recalibrate(model, FrozenDict(variables), TWO, call=inference)
        assert jax.tree.structure(new) == jax.tree.structure(FrozenDict(variables))


@pytest.mark.parametrize("layer_by_layer", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_one_program_for_each_shape_and_none_the_next_time(layer_by_layer):
    model, variables = started()
    shapes = []

    def call(model, x):
        shapes.append(x.shape)
        return model(x, train=False)

    for _ in range(2):
        jbn.tools.recalibrate(model, variables, BATCHES, call=call, layer_by_layer=layer_by_layer)
    assert sorted(shapes) == [(6, 3), (11, 3)]


class TestProgress:
    def test_a_bar_for_each_pass(self, capsys):
        recalibrated(progress=True, layer_by_layer=True)
        shown = capsys.readouterr().err
        assert "pass 3: 100%" in shown and "pass 4" not in shown and "4/4" in shown

    def test_without_tqdm(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "tqdm", None)
        with pytest.raises(ImportError, match="`progress` needs tqdm"):
            recalibrated(progress=True)


@pytest.mark.several_devices
class TestDevices:
    X = np.float32(RNG.standard_normal((2, 16, 3)) * 3 + 5)

    def expected(self):
        whole = np.float64(self.X).reshape(-1, 3)
        return whole.mean(0), whole.var(0)

    @pytest.mark.parametrize(
        ("kind", "axis_name"), [(AxisType.Auto, "i"), (AxisType.Explicit, None)], ids=str
    )
    def test_sharded_batches(self, kind, axis_name):
        mesh = jax.make_mesh((8,), ("i",), axis_types=(kind,))
        with jax.set_mesh(mesh):
            batches = [jax.device_put(x, NamedSharding(mesh, P("i"))) for x in self.X]
            stats = recalibrated(Network(axis_name=axis_name), batches)
        close(stats["first"]["mean"], self.expected()[0])
        close(stats["first"]["var"], self.expected()[1])
        assert stats["second"]["var"].sharding.is_fully_replicated

    @pytest.mark.parametrize("layer_by_layer", [False, pytest.param(True, marks=pytest.mark.slow)])
    def test_within_shard_map(self, layer_by_layer):
        mesh = jax.make_mesh((8,), ("i",), axis_types=(AxisType.Auto,))
        model, variables = started(Network(axis_name="i"))

        def of_one_device(variables, xs):
            options = {"call": inference, "layer_by_layer": layer_by_layer}
            return jbn.tools.recalibrate(model, variables, list(xs), **options)["batch_stats"]

        specs = {"in_specs": (P(), P(None, "i")), "out_specs": P()}
        stats = jax.jit(jax.shard_map(of_one_device, mesh=mesh, **specs))(variables, self.X)
        whole = recalibrated(batches=list(self.X), layer_by_layer=layer_by_layer)
        for actual, expected in zip(values(stats), values(whole), strict=True):
            close(actual, expected)


class GivenItsMode(nnx.Module):
    """A model that says in the call how its norm is to behave, and has a list."""

    def __init__(self):
        self.norm = nnx.BatchNorm(2, rngs=nnx.Rngs(0))
        self.sizes = [2]

    def __call__(self, x, *, train=False):
        return self.norm(x, use_running_average=not train)


def test_a_mode_given_in_the_call_makes_no_difference():
    x = jax.random.normal(jax.random.key(0), (8, 2)) + 3
    model = GivenItsMode()
    jbn.tools.recalibrate(model, [x])
    np.testing.assert_allclose(model.norm.mean[...], x.mean(0), rtol=1e-5)
    assert type(model.norm) is nnx.BatchNorm


class Drawing(nn.Module):
    """A model that draws in inference."""

    @nn.compact
    def __call__(self, x):
        x = x + jax.random.normal(self.make_rng("noise"), x.shape)
        return nn.BatchNorm(use_running_average=True)(x)


def test_rngs_of_a_model_that_draws_in_inference():
    x, rngs = jnp.zeros((8, 2)), {"noise": jax.random.key(1)}
    variables = Drawing().init({"params": jax.random.key(0), **rngs}, x)
    new = jbn.tools.recalibrate(Drawing(), variables, [x], rngs=rngs)
    (drawn,) = jax.tree.leaves(new["batch_stats"]["BatchNorm_0"]["mean"])
    assert (drawn != 0).all()
