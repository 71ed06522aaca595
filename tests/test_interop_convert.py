"""The conversions against the libraries they are of; each test is skipped where its library is not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jbn
from gallery import example

pytestmark = pytest.mark.usefixtures("standard_promotion")
close = functools.partial(jax.tree.map, lambda a, b: np.testing.assert_allclose(a, b, 1e-5, 1e-5))
STEPS = 3


def batches(number=8, shape=(6, 5, 5, 4)):
    """Batches that drift, channels last, so that running statistics and the batch's own differ."""
    rng = np.random.default_rng(0)
    return [(i + (1 + i) * rng.standard_normal(shape)).astype(np.float32) for i in range(number)]


def affine(features=4):
    rng = np.random.default_rng(1)
    return rng.uniform(0.5, 2, features).astype(np.float32), rng.normal(size=features).astype(
        np.float32
    )


def trained(params, stats, xs, **options):
    """Each of the batches, with jbn's output and its statistics afterwards."""
    for x in xs:
        y, stats = jbn.batch_norm(x, params, stats, train=True, **options)
        yield x, y, stats


def inference(params, stats, x, **options):
    return jbn.batch_norm(x, params, stats, train=False, **options)[0]


def channels_first(x):
    return np.ascontiguousarray(np.moveaxis(x, -1, 1))


class TestTorch:
    @pytest.fixture(autouse=True)
    def torch(self):
        self.torch = pytest.importorskip("torch")

    def layer(self, kind="BatchNorm2d", **options):
        layer = getattr(self.torch.nn, kind)(4, **options)
        if layer.weight is not None:
            weight, bias = affine()
            layer.load_state_dict(
                {"weight": self.torch.tensor(weight), "bias": self.torch.tensor(bias)}, strict=False
            )
        return layer

    def call(self, layer, x):
        with self.torch.no_grad():
            y = layer(self.torch.tensor(channels_first(x)))
        return np.moveaxis(y.numpy(), 1, -1)

    @pytest.mark.parametrize(
        ("kind", "shape"),
        [
            ("BatchNorm1d", (9, 4)),
            ("BatchNorm1d", (6, 5, 4)),
            ("BatchNorm2d", (6, 5, 5, 4)),
            ("BatchNorm3d", (3, 5, 5, 2, 4)),
        ],
    )
    @pytest.mark.parametrize("options", [{}, {"affine": False}, {"momentum": None}], ids=str)
    def test_from_and_to(self, kind, shape, options):
        *xs, held_out = batches(2 + STEPS + 1, shape)
        model = self.torch.nn.Sequential(self.torch.nn.ReLU(), self.layer(kind, **options))
        layer = model[1]
        for x in xs[:2]:
            self.call(layer, x)
        cumulative = layer.momentum is None
        params, stats = jbn.tools.from_torch(model.state_dict(), "1", cumulative=cumulative)
        close(inference(params, stats, held_out), self.call(layer.eval(), held_out))
        layer.train()
        momentum = {"momentum": None if cumulative else 0.9, "running_variance": "unbiased"}
        ours = trained(params, stats, xs[2:], **momentum)
        for x, y, stats in ours:
            close(y, self.call(layer, x))
            close(stats["mean"], layer.running_mean.numpy())
            close(stats["var"], layer.running_var.numpy())

        # And back, into a new layer, which goes on as jbn does.
        other = self.layer(kind, **options)
        entries = {
            name: self.torch.from_numpy(v) for name, v in jbn.tools.to_torch(params, stats).items()
        }
        other.load_state_dict(entries)
        assert entries.keys() == other.state_dict().keys()
        assert other.num_batches_tracked == (2 + STEPS if cumulative else 0)
        close(self.call(other.eval(), held_out), inference(params, stats, held_out))
        other.train()
        ours = trained(params, stats, xs[2:], **momentum)
        for x, y, stats in ours:
            close(self.call(other, x), y)
            close(other.running_var.numpy(), stats["var"])

    def test_without_running_statistics(self):
        layer = self.layer(track_running_stats=False).eval()
        params, stats = jbn.tools.from_torch(layer.state_dict())
        assert stats == {}
        x = batches()[3]
        y, _ = jbn.batch_norm(x, params, jbn.init(4)[1], train=True)
        close(y, self.call(layer, x))
        assert jbn.tools.to_torch(params, stats).keys() == layer.state_dict().keys()

    def test_synchronized(self):
        layer = self.layer()
        self.call(layer, batches()[3])
        synchronized = self.torch.nn.SyncBatchNorm.convert_sync_batchnorm(layer)
        expected = jbn.tools.from_torch(layer.state_dict())
        close(jbn.tools.from_torch(synchronized.state_dict()), expected)

    def test_frozen(self, torchvision):
        layer = self.layer()
        self.call(layer, batches()[3])
        frozen = torchvision.ops.FrozenBatchNorm2d(4)
        frozen.load_state_dict(layer.state_dict())
        params, stats = jbn.tools.from_torch(frozen.state_dict())
        x = batches()[4]
        close(inference(params, stats, x), self.call(frozen, x))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras' own
class TestKeras:
    @pytest.fixture(autouse=True)
    def keras(self, monkeypatch):
        monkeypatch.setenv("KERAS_BACKEND", "jax")
        self.keras = pytest.importorskip("keras")

    def layer(self, **options):
        layer = self.keras.layers.BatchNormalization(momentum=0.9, **options)
        layer.build((None, 5, 5, 4))
        for variable, value in zip(layer.trainable_variables, affine(), strict=False):
            variable.assign(value)
        return layer

    def call(self, layer, x, training):
        return np.asarray(layer(x, training=training))

    @pytest.mark.parametrize("scale", [True, False])
    @pytest.mark.parametrize("center", [True, False])
    def test_from_and_to(self, scale, center):
        *xs, held_out = batches(2 + STEPS + 1)
        flags = {"scale": scale, "center": center}
        layer = self.layer(**flags)
        for x in xs[:2]:
            self.call(layer, x, True)
        params, stats = jbn.tools.from_keras(layer.get_weights(), **flags)
        epsilon = {"epsilon": 1e-3}
        close(inference(params, stats, held_out, **epsilon), self.call(layer, held_out, False))
        ours = trained(params, stats, xs[2:], momentum=0.9, **epsilon)
        for x, y, stats in ours:
            close(y, self.call(layer, x, True))
            close((stats["mean"], stats["var"]), tuple(layer.get_weights()[-2:]))
        other = self.layer(**flags)
        other.set_weights(jbn.tools.to_keras(params, stats))
        close(self.call(other, held_out, False), inference(params, stats, held_out, **epsilon))
        ours = trained(params, stats, xs[2:], momentum=0.9, **epsilon)
        for x, y, stats in ours:
            close(self.call(other, x, True), y)
            close(tuple(other.get_weights()[-2:]), (stats["mean"], stats["var"]))

    def renorm(self, renorm_momentum=0.9):
        clipping = {"rmax": 1.5, "rmin": 1 / 1.5, "dmax": 0.5}
        return self.layer(renorm=True, renorm_clipping=clipping, renorm_momentum=renorm_momentum)

    @pytest.mark.parametrize("steps", [0, 2])
    def test_renormalization(self, steps):
        *xs, held_out = batches(steps + STEPS + 1)
        layer, norm = self.renorm(), jbn.renorm(r_max=1.5, d_max=0.5)
        for x in xs[:steps]:
            self.call(layer, x, True)
        params, stats = jbn.tools.from_keras(layer.get_weights(), renorm=True)
        options = {"momentum": 0.9, "epsilon": 1e-3}
        if steps:  # Keras' moving_variance is 1 before the first one, its moving_stddev too.
            expected = self.call(layer, held_out, False)
            close(norm.apply(held_out, params, stats, train=False, **options)[0], expected)
        for x in xs[steps:]:
            y, stats = norm.apply(x, params, stats, train=True, **options)
            close(y, self.call(layer, x, True))
            close(jbn.tools.from_keras(layer.get_weights(), renorm=True), (params, dict(stats)))
        other = self.renorm()
        other.set_weights(jbn.tools.to_keras(params, stats, renorm=True))
        close(other.get_weights(), layer.get_weights())
        y, _ = norm.apply(held_out, params, stats, train=True, **options)
        close(self.call(other, held_out, True), y)

    def test_two_rates_of_renormalization_are_refused(self):
        layer = self.renorm(renorm_momentum=0.5)
        self.call(layer, batches()[1], True)
        with pytest.raises(ValueError, match=r"`renorm_mean` must be `moving_mean`.*renorm_momentum"):
            jbn.tools.from_keras(layer.get_weights(), renorm=True)
        params, stats = jbn.tools.from_keras(layer.get_weights()[:4])
        x = batches()[2]
        close(inference(params, stats, x, epsilon=1e-3), self.call(layer, x, False))


class TestHaiku:
    @pytest.fixture(autouse=True)
    def haiku(self):
        self.hk = pytest.importorskip("haiku")

    def model(self, **options):
        flags = {"create_scale": True, "create_offset": True, "decay_rate": 0.9, **options}

        model = self.hk.transform_with_state(
            lambda x, is_training: self.hk.BatchNorm(**flags, name="norm")(x, is_training)
        )
        return model.init, jax.jit(model.apply, static_argnums=4)

    def state_after(self, xs, **options):
        init, apply = self.model(**options)
        params, state = init(jax.random.key(0), xs[0], True)
        for name, value in zip(("scale", "offset"), affine(), strict=True):
            if name in params.get("norm", {}):
                params["norm"][name] = value.reshape(params["norm"][name].shape)
        for x in xs:
            _, state = apply(params, state, None, x, True)
        return apply, params, state

    @pytest.mark.parametrize("flags", [(True, True), (False, True), (False, False)], ids=str)
    def test_matching_inference(self, flags):
        *xs, held_out = batches(3)
        options = dict(zip(("create_scale", "create_offset"), flags, strict=True))
        apply, theirs, state = self.state_after(xs, **options)
        params, stats = jbn.tools.from_haiku(theirs, state, "norm", match="inference")
        close(inference(params, stats, held_out), apply(theirs, state, None, held_out, False)[0])
        back, state = jbn.tools.to_haiku(params, stats, "norm", ndim=4)
        assert jax.tree.map(np.shape, back) == jax.tree.map(np.shape, dict(theirs))
        close(apply(back, state, None, held_out, False)[0], inference(params, stats, held_out))
        # Without a counter Haiku goes on as jbn does.
        ours = trained(params, stats, xs, momentum=0.9)
        for x, y, stats in ours:
            expected, state = apply(back, state, None, x, True)
            close(y, expected)
            close(stats, jbn.tools.from_haiku(back, state, "norm", match="inference")[1])

    def test_the_schedule_of_momentum_that_debiases(self):
        xs = batches(2 + STEPS)
        apply, theirs, state = self.state_after(xs[:2])
        params, stats = jbn.tools.from_haiku(theirs, state, "norm", match="inference")
        for t, x in enumerate(xs[2:], start=2):
            momentum = jnp.asarray(0.9 * (1 - 0.9**t) / (1 - 0.9 ** (t + 1)))
            y, stats = jbn.batch_norm(x, params, stats, train=True, momentum=momentum)
            expected, state = apply(theirs, state, None, x, True)
            close(y, expected)
            close(stats, jbn.tools.from_haiku(theirs, state, "norm", match="inference")[1])

    def test_matching_training(self):
        *xs, held_out = batches(2 + STEPS + 1)
        apply, theirs, state = self.state_after(xs[:2])
        params, stats = jbn.tools.from_haiku(theirs, state, "norm", match="training")
        ours = trained(params, stats, xs[2:], momentum=0.9)
        for x, y, stats in ours:
            expected, state = apply(theirs, state, None, x, True)
            close(y, expected)
            close(stats, jbn.tools.from_haiku(theirs, state, "norm", match="training")[1])
        debiased = {name: v / (1 - 0.9 ** len(xs)) for name, v in stats.items()}
        close(inference(params, debiased, held_out), apply(theirs, state, None, held_out, False)[0])
        settings = {"counter": len(xs), "decay_rate": 0.9, "ndim": 4}
        for match, given in (("training", stats), ("inference", debiased)):
            _, back = jbn.tools.to_haiku(params, given, "norm", match=match, **settings)
            close(back, dict(state))

    def test_channels_in_axis_1(self):
        x = channels_first(batches()[1])
        apply, theirs, state = self.state_after([x], data_format="NCHW")
        params, stats = jbn.tools.from_haiku(theirs, state, "norm", match="inference", axis=1)
        close(inference(params, stats, x, axis=1), apply(theirs, state, None, x, False)[0])
        back, _ = jbn.tools.to_haiku(params, stats, "norm", ndim=4, axis=1)
        close(back, dict(theirs))


class TestEquinox:
    @pytest.fixture(autouse=True)
    def equinox(self):
        self.eqx = pytest.importorskip("equinox")

    def layer(self, mode="batch", **options):
        layer, state = self.eqx.nn.make_with_state(self.eqx.nn.BatchNorm)(
            4, "batch", mode=mode, momentum=0.9, **options
        )
        if layer.weight is not None:
            layer = self.eqx.tree_at(lambda bn: (bn.weight, bn.bias), layer, affine())
        return layer, state

    def call(self, layer, state, x, **options):
        """Of channels last; the state after it."""
        one = functools.partial(layer, **options)
        mapped = jax.vmap(one, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
        y, state = mapped(jnp.asarray(channels_first(x)), state)
        return np.moveaxis(np.asarray(y), 1, -1), state

    def arrays(self, layer, state):
        fields = ["ema_state_index"] if layer.mode == "ema" else ["batch_state_index", "batch_counter"]
        statistics = {name: state.get(getattr(layer, name)) for name in fields}
        return {"weight": layer.weight, "bias": layer.bias, **statistics}

    def test_matching_training(self):
        xs = batches(2 + STEPS)
        layer, state = self.layer()
        for x in xs[:2]:
            _, state = self.call(layer, state, x)
        params, stats = jbn.tools.from_equinox(self.arrays(layer, state), match="training")
        ours = trained(params, stats, xs[2:], momentum=0.9)
        for x, y, stats in ours:
            expected, state = self.call(layer, state, x)
            close(y, expected)
            close(stats, jbn.tools.from_equinox(self.arrays(layer, state), match="training")[1])
        settings = {"match": "training", "counter": len(xs), "momentum": 0.9}
        close(jbn.tools.to_equinox(params, stats, **settings), self.arrays(layer, state))

    @pytest.mark.parametrize("steps", [0, 2])
    @pytest.mark.parametrize("affine", [True, False])
    def test_matching_inference(self, steps, affine):
        *xs, held_out = batches(steps + 1)
        layer, state = self.layer(channelwise_affine=affine)
        for x in xs:
            _, state = self.call(layer, state, x)
        arrays = self.arrays(layer, state)
        params, stats = jbn.tools.from_equinox(arrays, match="inference", momentum=0.9)
        expected, _ = self.call(layer, state, held_out, inference=True)
        close(inference(params, stats, held_out), expected)
        if steps:
            settings = {"match": "inference", "counter": steps, "momentum": 0.9}
            close(jbn.tools.to_equinox(params, stats, **settings), arrays)

    def test_going_on_as_jbn_does(self):
        *xs, held_out = batches(STEPS + 1)
        scale, bias = affine()
        params = {"scale": scale, "bias": bias}
        *_, (_, _, stats) = trained(params, jbn.init(4)[1], xs, momentum=0.9)
        arrays = jbn.tools.to_equinox(params, stats)
        layer, state = self.layer()
        layer = self.eqx.tree_at(
            lambda bn: (bn.weight, bn.bias), layer, (arrays["weight"], arrays["bias"])
        )
        for field in ("batch_state_index", "batch_counter"):
            state = state.set(getattr(layer, field), jax.tree.map(jnp.asarray, arrays[field]))
        expected, _ = self.call(layer, state, held_out, inference=True)
        close(inference(params, stats, held_out), expected)
        ours = trained(params, stats, xs, momentum=0.9)
        for x, y, stats in ours:
            expected, state = self.call(layer, state, x)
            close(y, expected)
            close((stats["mean"], stats["var"]), state.get(layer.batch_state_index))

    def test_mode_ema(self):
        *xs, held_out = batches(3)
        layer, state = self.layer("ema")
        for x in xs:
            _, state = self.call(layer, state, x)
        params, stats = jbn.tools.from_equinox(self.arrays(layer, state), match="inference")
        expected, _ = self.call(layer, state, held_out, inference=True)
        close(inference(params, stats, held_out), expected)
        arrays = jbn.tools.to_equinox(params, stats)
        other, fresh = self.layer("ema")
        fresh = fresh.set(other.ema_state_index, jax.tree.map(jnp.asarray, arrays["batch_state_index"]))
        fresh = fresh.set(other.ema_first_time_index, jnp.array(False))
        close(self.call(other, fresh, held_out, inference=True)[0], expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_torchvisions_resnet_by_a_file(name, torchvision, tmp_path):
    torch, safetensors = pytest.importorskip("torch"), pytest.importorskip("safetensors.torch")
    from safetensors.numpy import load_file, save_file

    weights = example("models.torchvision_weights")
    theirs = getattr(torchvision.models, name)().eval()
    state_dict = theirs.state_dict()
    torch.manual_seed(0)
    for entry, v in state_dict.items():
        if "bn" in entry or "downsample.1" in entry:
            v.copy_(torch.rand(v.shape) + 0.5) if v.ndim else v.fill_(5)
    assert len(state_dict) == {"resnet18": 122, "resnet50": 320}[name]
    safetensors.save_file(state_dict, tmp_path / "torch.safetensors")

    images = np.random.default_rng(0).normal(size=(2, 75, 64, 3)).astype(np.float32)
    model = getattr(example("models.resnet"), name)(classes=1000, small_images=False)
    init = functools.partial(model.init, train=False)
    shapes = jax.eval_shape(init, jax.eval_shape(lambda: jax.random.key(0)), images)
    variables = weights.from_torchvision(load_file(tmp_path / "torch.safetensors"), shapes)
    logits = jax.jit(functools.partial(model.apply, train=False))(variables, images)
    with torch.no_grad():
        expected = theirs(torch.tensor(channels_first(images))).numpy()
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())

    save_file(weights.to_torchvision(variables), tmp_path / "jax.safetensors")
    back = safetensors.load_file(tmp_path / "jax.safetensors")
    assert back.keys() == state_dict.keys()
    for entry, v in state_dict.items():
        assert back[entry].shape == v.shape and back[entry].dtype == v.dtype
        assert entry.endswith("num_batches_tracked") or torch.equal(back[entry], v), entry
    theirs.load_state_dict(back)
