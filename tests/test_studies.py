"""What the programs compare is what they say: padding, frozen statistics, weights, tasks, devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from gallery import close, example

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

    @pytest.mark.slow
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
    @pytest.mark.parametrize("name", ["group norm", "layer norm"])
    def test_flax_norms_have_the_axes_that_are_meant(self, name):
        x = jnp.array(np.random.default_rng(0).normal(3, 2, (2, 4, 4, 16)), jnp.float32)
        norm = example("small_batches").factory(name, momentum=0.9, steps=10)(use_running_average=False)
        y = norm.apply(norm.init(jax.random.key(0), x), x)
        # 8 groups of neighbouring channels.
        groups = y.reshape(2, 4, 4, 8 if name == "group norm" else 1, -1)
        np.testing.assert_allclose(groups.mean((1, 2, 4)), 0, atol=1e-5)
        np.testing.assert_allclose(groups.std((1, 2, 4)), 1, rtol=1e-4)

    @pytest.mark.parametrize(("model", "kernels"), [("mlp", "Dense_0"), ("cnn", "Conv_0")])
    def test_a_bias_where_there_is_no_norm(self, model, kernels):
        study, images = example("small_batches"), np.zeros((2, 8, 8, 1), np.float32)
        for name in ("renorm", "no norm"):
            init = study.network(model, name, 1.0, 10).init
            params, batch_stats = jax.eval_shape(init, jax.random.key(0), images)
            assert ("bias" in params[kernels]) == (name == "no norm") == (not batch_stats)


class TestTwoDomains:
    def test_the_share_of_shifted_images_is_that_of_the_mix(self):
        study = example("two_domains")
        args = study.parser.parse_args(["--batch-size", "10", "--seeds", "2", "--epochs", "3"])
        for mixed in (True, False):
            orders = np.stack(list(study.orders(2000, args, (0.9, 0.1), mixed=mixed)))
            assert orders.shape == (3, 2, 200, 10)
            shifted = np.int32(orders >= 2000)
            np.testing.assert_allclose(shifted.mean((1, 2, 3)), (0.9, 0.5, 0.1), atol=0.07)
            assert (np.ptp(shifted, axis=-1) == 0).all() == (not mixed)
            # Every image once an epoch, as it is or shifted.
            assert (np.sort(orders.reshape(6, -1) % 2000) == np.arange(2000)).all()

    @pytest.mark.slow
    def test_an_index_per_example_is_an_index_per_batch_in_a_batch_of_one_domain(self):
        study, mlp = example("two_domains"), example("models.mlp")
        ways = [study.WAYS[f"domains, an index per {what}"] for what in ("example", "batch")]
        images = np.random.default_rng(0).uniform(size=(16, 5)).astype(np.float32)
        state = mlp.init(jax.random.key(0), (5, 6, 10), norm=ways[0].norm)
        minibatch = images, np.arange(16) % 10, np.ones(16, np.int32)
        each, whole = (study.loss(*state, minibatch, way=way) for way in ways)
        close(each, whole)
        (stats,) = whole[1]
        assert (stats["mean"][0] == 0).all() and (stats["mean"][1] != 0).all()


class TestRecurrent:
    @pytest.mark.slow
    def test_padding_does_not_matter(self, monkeypatch):
        study = example("recurrent")
        monkeypatch.setattr(study, "HIDDEN", 4)
        images = np.random.default_rng(0).uniform(size=(16, 4, 3, 1)).astype(np.float32)
        images = study.shortened(images, 0)
        longer = np.concatenate([images, np.full((16, 3, 3, 1), np.nan, np.float32)], axis=1)
        for norm in study.NORMS.values():
            model = study.Classifier(norm)
            variables = model.init(jax.random.key(0), images, train=False)
            apply = functools.partial(model.apply, variables, train=True, mutable=["batch_stats"])
            close(apply(longer), apply(images))

    @pytest.mark.slow
    def test_each_step_has_statistics_of_its_own(self, monkeypatch):
        study = example("recurrent")
        monkeypatch.setattr(study, "HIDDEN", 4)
        images = np.random.default_rng(0).uniform(size=(16, 4, 3, 1)).astype(np.float32)
        model = study.Classifier(study.NORMS["statistics per step"])
        variables = model.init(jax.random.key(0), images, train=False)
        _, updated = model.apply(variables, images, train=True, mutable=["batch_stats"])
        (cell,) = updated["batch_stats"].values()
        projected = images[..., 0] @ np.asarray(variables["params"]["Cell_0"]["input"]["kernel"])
        mean = cell["norm_x"]["mean"]
        np.testing.assert_allclose(mean[:4], 0.1 * projected.mean(0), atol=1e-6)
        assert (mean[4:] == 0).all()


class TestCrossQ:
    def test_log_density_of_an_action_is_that_of_the_squashed_normal(self):
        crossq = example("crossq")
        actor, _ = example("models.mlp").init(jax.random.key(0), (3, 4, 2), norm=None)
        actor[-1]["bias"] = jnp.array([[0.3, -1.0]])
        actor[-1]["kernel"] = jnp.zeros((4, 2))
        actions, log_p = crossq.act(actor, jnp.zeros((20_000, 3)), jax.random.key(1))
        # The density by a histogram; the mean of exp(-log_p) is the length of the interval.
        counts, edges = np.histogram(actions, 20, (-1, 1), density=True)
        middle = np.digitize(np.ravel(actions), edges) - 1
        each = [np.exp(np.asarray(log_p)[middle == k].mean()) for k in range(5, 15)]
        np.testing.assert_allclose(counts[5:15], each, rtol=0.15)

    @pytest.mark.slow
    def test_targets_and_actor_move_no_critic(self):
        crossq, mlp = example("crossq"), example("models.mlp")
        state = jax.jit(lambda: crossq.init(0, crossq.optax.sgd(1.0), None))()
        rng = np.random.default_rng(0)
        batch = rng.normal(size=(6, 8)).astype(np.float32)
        of = jax.grad(crossq.loss, has_aux=True)
        grads, _ = of(state.params, state.batch_stats, batch, jax.random.key(0), None)

        def of_critics(critics):
            following = jax.random.split(jax.random.key(0))[0]
            now, actions, rewards, then = np.split(batch, (3, 4, 5), axis=1)
            next_actions, log_p = crossq.act(state.params["actor"], then, following)
            q = lambda c, x: jax.vmap(lambda c: mlp.apply(c, [], x, norm=None)[0][:, 0])(c)  # noqa: E731
            next_q = q(state.params["critics"], np.concatenate([then, next_actions], axis=1)).min(0)
            target = rewards[:, 0] + 0.99 * (next_q - log_p)
            return jnp.mean((q(critics, np.concatenate([now, actions], axis=1)) - target) ** 2)

        close(grads["critics"], jax.grad(of_critics)(state.params["critics"]), rtol=1e-3, atol=1e-4)


class TestFineTune:
    @pytest.mark.slow
    def test_what_a_step_moves(self):
        study, training = example("fine_tune"), example("shared.training")
        digits = example("shared.data").load()
        images, labels = digits.train_images[:8], digits.train_labels[:8]
        state = training.create_state(study.NETWORK, images, seed=0)
        moved = {}
        for name, network in study.WAYS.items():
            after, _ = training.train_step(state, images, labels, network=network, learning_rate=0.1)
            pairs = {
                "kernel": (state.params["Conv_0"]["kernel"], after.params["Conv_0"]["kernel"]),
                "scale": (state.params["BatchNorm_0"]["scale"], after.params["BatchNorm_0"]["scale"]),
                "bias": (state.params["BatchNorm_1"]["bias"], after.params["BatchNorm_1"]["bias"]),
                "mean": (
                    state.batch_stats["BatchNorm_0"]["mean"],
                    after.batch_stats["BatchNorm_0"]["mean"],
                ),
            }
            moved[name] = [key for key, (a, b) in pairs.items() if not np.array_equal(a, b)]
        assert list(moved.values()) == [
            ["kernel", "scale", "bias", "mean"],
            ["kernel", "scale", "bias"],
            ["kernel"],
        ]

    def test_the_images_are_few_and_the_last_layer_is_new(self):
        study, training = example("fine_tune"), example("shared.training")
        samples = study.few(study.only(study.data.load(), range(5, 10)), seed=0)
        assert list(np.bincount(samples.train_labels)[5:]) == [10] * 5
        assert set(samples.test_labels) == {5, 6, 7, 8, 9}
        trained = training.create_state(study.NETWORK, samples.train_images, seed=0)
        state = study.start(trained, 0, samples.train_images)
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
