"""What the programs compare is what they say: padding, frozen statistics, weights, tasks, devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from gallery import close, example, quick_compilation  # noqa: F401

pytestmark = pytest.mark.usefixtures("standard_promotion")


def sigmoid(v):
    return 1 / (1 + np.exp(-v))


def lengths(images):
    return (~np.isnan(images[:, :, 0, 0])).sum(1)


def test_grey_levels_above_a_dark_level_are_exact():
    digits = example("shared.data").load()
    above = example("raw_pixels").above(digits, 1_000_000)
    for shown, pixels in ((above[0], digits[0]), (above[2], digits[2])):
        assert shown.dtype == np.float32
        np.testing.assert_array_equal(np.float64(shown) - 1_000_000, np.float64(pixels) * 16)


class TestRNN:
    @pytest.fixture
    def rnn(self, monkeypatch):
        module = example("rnn")
        monkeypatch.setattr(module, "HIDDEN", 6)
        monkeypatch.setattr(module, "LAYERS", 1)
        return module

    @pytest.fixture
    def sequences(self, rnn):
        """Sequences of 2 to 4 steps with 3 features: (16, 4, 3, 1), NaN in the padding."""
        images = np.random.default_rng(0).uniform(size=(16, 4, 3, 1)).astype(np.float32)
        return rnn.shortened(images, 0)

    def test_the_last_rows_are_dropped(self, rnn):
        images = np.random.default_rng(0).uniform(size=(200, 5, 2, 1)).astype(np.float32)
        short = rnn.shortened(images, seed=3)
        assert short.dtype == np.float32 and set(lengths(short)) == {3, 4, 5}
        for image, cut, length in zip(images, short, lengths(short), strict=True):
            np.testing.assert_array_equal(cut[:length], image[:length])
            assert np.isnan(cut[length:]).all()

    def test_lstm_is_its_equations(self, rnn, sequences):
        """Without batch norm, one sequence at a time, in float64."""
        x = np.nan_to_num(sequences[..., 0])
        mask = np.arange(4) < lengths(sequences)[:, None]
        layer = rnn.LSTM("no batch norm")
        variables = layer.init(jax.random.key(0), x, mask, train=True)
        params = jax.tree.map(lambda v: np.asarray(v, np.float64), variables["params"])
        kernel, bias = params["Dense_0"]["kernel"], params["Dense_0"]["bias"]
        actual = np.asarray(layer.apply(variables, x, mask, train=True))
        for n, length in enumerate(lengths(sequences)):
            c = h = np.zeros(rnn.HIDDEN)
            for t in range(4):
                if t < length:
                    i, f, g, o = np.split(x[n, t] @ kernel + bias + h @ params["recurrent"], 4)
                    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
                    h = sigmoid(o) * np.tanh(c)
                np.testing.assert_allclose(actual[n, t], h, atol=1e-6)

    def test_padding_does_not_matter(self, rnn, sequences):
        longer = np.concatenate([sequences, np.full((16, 3, 3, 1), np.nan, np.float32)], axis=1)
        model = rnn.Classifier("batch norm")
        variables = model.init(jax.random.key(0), sequences, train=False)
        apply = jax.jit(functools.partial(model.apply, train=True, mutable=["batch_stats"]))
        logits, updated = apply(variables, sequences)
        assert np.isfinite(logits).all()
        close(apply(variables, longer), (logits, updated))
        steps = sequences[..., 0][~np.isnan(sequences[:, :, 0, 0])]
        projected = steps @ np.asarray(variables["params"]["LSTM_0"]["Dense_0"]["kernel"])
        mean = updated["batch_stats"]["LSTM_0"]["BatchNorm_0"]["mean"]
        np.testing.assert_allclose(mean, 0.1 * projected.mean(0), atol=1e-6)


class TestSmallBatches:
    def test_flax_norms_have_the_axes_that_are_meant(self):
        x = jnp.array(np.random.default_rng(0).normal(3, 2, (2, 4, 4, 8)), jnp.float32)
        axes = {"group norm": (1, 2, 4), "layer norm": (1, 2, 3), "instance norm": (1, 2)}
        for name, reduced in axes.items():
            norm = example("small_batches").NORMS[name](use_running_average=False, momentum=0.9)
            y, _ = norm.init_with_output(jax.random.key(0), x)
            # Groups are of 4 neighbouring channels.
            values = y.reshape(2, 4, 4, 2, 4) if name == "group norm" else y
            np.testing.assert_allclose(values.mean(reduced), 0, atol=1e-5)
            np.testing.assert_allclose(values.std(reduced), 1, rtol=1e-4)


class TestFineTune:
    def test_all_of_batch_norm_is_frozen(self):
        way = example("fine_tune").WAYS["all of batch norm frozen"]
        values = jnp.ones(2)
        params = {"BatchNorm_0": {"scale": values, "bias": values}, "Conv_0": {"kernel": values}}
        optimizer = way.optimizer(0.1)
        updates, _ = optimizer.update(params, optimizer.init(params), params)
        changed = jax.tree.map(lambda v: bool(v.any()), updates)
        frozen = {"scale": False, "bias": False}
        assert changed == {"BatchNorm_0": frozen, "Conv_0": {"kernel": True}}
        assert not way.train

    def test_the_images_are_few_and_the_last_layer_is_new(self):
        study, training = example("fine_tune"), example("shared.training")
        samples = study.few(study.only(study.data.load(), range(5, 10)), seed=0)
        assert list(np.bincount(samples.train_labels)[5:]) == [10] * 5
        assert set(samples.test_labels) == {5, 6, 7, 8, 9}
        trained = training.create_state(study.NETWORK, samples.train_images, seed=0)
        state = study.start(trained, 0, samples.train_images, study.WAYS["batch statistics"])
        for name, layer in trained.params.items():
            assert (state.params[name] is layer) == (name != "Dense_0")
        assert state.batch_stats is trained.batch_stats


class TestImbalanced:
    def test_long_tail(self):
        study, labels = example("imbalanced"), example("shared.data").load().train_labels
        chosen, other = (study.long_tail(labels, seed) for seed in (0, 1))
        sizes = np.bincount(labels[chosen])
        assert sizes[0] == np.count_nonzero(labels == 0) and sizes[9] == round(sizes[0] / 50)
        assert (np.diff(sizes) < 0).all()
        assert len(np.unique(chosen)) == len(chosen) == len(other)
        assert set(chosen) != set(other)

    def test_weights_reach_the_statistics(self):
        study, mlp = example("imbalanced"), example("models.mlp")
        digits = example("shared.data").load()
        images, labels = digits.train_images[:64], digits.train_labels[:64]
        weights = np.where(labels == 0, 50, 1).astype(np.float32)
        layers, batch_stats = mlp.init(jax.random.key(0), (64, 8, 10))
        loss = jax.jit(functools.partial(study.loss, of_loss="plain loss", of_norm="weighted"))
        _, updated = loss(layers, batch_stats, (images, labels, weights))
        hidden = images.reshape(64, -1) @ np.asarray(layers[0]["kernel"])
        expected = 0.1 * np.average(hidden, axis=0, weights=weights)
        np.testing.assert_allclose(updated[0]["mean"], expected, rtol=1e-4, atol=1e-5)

    def test_weights_reach_the_loss(self):
        logits, labels = jnp.array([[0.0, 1.0], [2.0, 0.0]]), jnp.array([1, 1])
        each = np.log(1 + np.exp([-1.0, 2.0]))
        loss = example("shared.side_by_side").cross_entropy(logits, labels, jnp.array([3.0, 1.0]))
        np.testing.assert_allclose(loss, np.average(each, weights=[3, 1]), rtol=1e-5)


def test_tasks_that_share_statistics_or_not_train_alike():
    study, digits = example("multi_task"), example("shared.data").load()
    minibatch = digits.train_images[:64], digits.train_labels[:64]
    losses, statistics = {}, {}
    for way in ("shared", "per task"):
        loss = jax.jit(functools.partial(study.loss, way=way))
        losses[way], statistics[way] = loss(*study.init(jax.random.key(0), 64, way), minibatch)
    assert losses["shared"] == losses["per task"]
    assert [len(stats) for stats in statistics.values()] == [1, 2]
    first, second = (stats[0]["mean"] for stats in statistics["per task"])
    assert not np.allclose(first, second)


class TestSyncBatchNorm:
    def test_devices_have_statistics_of_their_own_until_they_are_merged(self):
        sync, training = example("sync_batch_norm"), example("shared.training")
        mesh = jax.make_mesh((4,), (sync.AXIS,), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
        digits = example("shared.data").load()
        start = training.create_state(sync.unnamed, digits.train_images, 0, sync.sgd)
        step, merge = sync.unsynchronized(mesh, 0.01)
        each = jax.tree.map(lambda v: jnp.stack([v] * 4), start.batch_stats)
        state = start._replace(batch_stats=each)
        state, _ = jax.block_until_ready(step(state, digits.train_images[:8], digits.train_labels[:8]))
        layer = jax.device_get(state.batch_stats["BatchNorm_0"])
        merged = jax.device_get(merge(state).batch_stats["BatchNorm_0"])
        assert np.ptp(layer["mean"], axis=0).max() > 1e-3
        np.testing.assert_allclose(merged["mean"], layer["mean"].mean(0), rtol=1e-5, atol=1e-6)
        wanted = layer["var"].mean(0) + layer["mean"].var(0)
        np.testing.assert_allclose(merged["var"], wanted, rtol=1e-5)

    def test_a_way_with_other_numbers_is_an_error(self):
        sync, training = example("sync_batch_norm"), example("shared.training")
        start = training.State({}, {}, {})
        ways = {
            name: sync.Way(start, lambda state, *_, loss=loss: (state, loss), None)
            for name, loss in (("first", 1.0), ("second", np.nan))
        }
        with pytest.raises(SystemExit, match="second: expected a difference of at most 1e-05, got nan"):
            sync.compare(ways, example("shared.data").load(), np.arange(4))

    def test_too_few_devices_give_one_line(self, monkeypatch):
        monkeypatch.setattr(jax, "devices", lambda kind: [kind] * 2)
        with pytest.raises(SystemExit, match="expected 8 devices, got 2: leave --xla_force_"):
            example("sync_batch_norm").host_devices()
