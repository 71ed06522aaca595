"""The examples that compare: batch sizes, learning rates, and ways to fine-tune."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gallery import example, quick_compilation, run  # noqa: F401

pytestmark = pytest.mark.usefixtures("standard_promotion")


class TestSmallBatches:
    @pytest.fixture
    def study(self):
        return example("small_batches")

    def test_table_has_every_norm_and_size(self, study, monkeypatch, tmp_path, capsys):
        monkeypatch.setattr(study, "BATCH_SIZES", (128, 256))
        norms = {name: study.NORMS[name] for name in ("batch norm", "no norm")}
        monkeypatch.setattr(study, "NORMS", norms)
        accuracies, printed = (
            run(study.__name__, tmp_path, "--epochs", "1", "--seeds", "1"),
            capsys.readouterr().out,
        )
        lines = printed.splitlines()
        assert "batches of 128" in lines[0] and "batches of 256" in lines[0]
        for name, line in zip(norms, lines[1:3], strict=True):
            values = [accuracies[name][size] for size in (128, 256)]
            assert np.shape(values) == (2, 1)
            assert line.split() == [*name.split(), *(f"{value:.1%}" for (value,) in values)]

    def test_every_size_sees_the_same_images(self, study, monkeypatch, tmp_path):
        seen = {}

        def record(name, rate, state, step, predict, digits, args, bar, *, batch_size, seed):
            assert len(digits.train_images) == len(digits.train_labels) and seed == 0
            seen[name] = (len(digits.train_images), batch_size, args.epochs, rate)
            momentum = step.keywords["model"].momentum
            assert momentum ** (32 / batch_size) == pytest.approx(0.9)
            return state, study.report.Run(name, rate, [0.5], [], [])

        monkeypatch.setattr(study.report, "record", record)
        monkeypatch.setattr(study, "create_state", lambda *_: None)
        study.main(["--seeds", "1", "--learning-rate", "0.32", "--out", str(tmp_path)])
        assert len(seen) == len(study.NORMS) * len(study.BATCH_SIZES)
        ((images, epochs),) = {(images, epochs) for images, _, epochs, _ in seen.values()}
        assert images > 1280 and epochs == 5
        for _, size, _, rate in seen.values():
            assert images % size == 0
            assert rate == pytest.approx(size / 100)

    def test_only_batch_norm_looks_at_the_batch(self, study):
        images = example("data").load().train_images[:4]

        def first_logits(norm):
            """Of the first image, with the others and alone."""
            model = study.CNN(norm)
            variables = model.init(jax.random.key(0), images[:1], train=False)
            training = {"train": True, "mutable": ["batch_stats"]}
            return [model.apply(variables, x, **training)[0][0] for x in (images, images[:1])]

        logits = jax.jit(lambda: {norm: first_logits(norm) for norm in study.NORMS})()
        for norm, (together, alone) in logits.items():
            difference = np.abs(together - alone).max()
            assert difference > 1e-2 if norm == "batch norm" else difference < 1e-4

    def test_flax_norms_have_the_axes_that_are_meant(self, study):
        x = jnp.array(np.random.default_rng(0).normal(3, 2, (2, 4, 4, 8)), jnp.float32)
        axes = {"group norm": (1, 2, 4), "layer norm": (1, 2, 3), "instance norm": (1, 2)}
        for name, reduced in axes.items():
            norm = study.NORMS[name]()
            y = norm.apply(norm.init(jax.random.key(0), x), x)
            # Groups are of 4 neighbouring channels.
            values = y.reshape(2, 4, 4, 2, 4) if name == "group norm" else y
            np.testing.assert_allclose(values.mean(reduced), 0, atol=1e-5)
            np.testing.assert_allclose(values.std(reduced), 1, rtol=1e-4)


class TestCovariateShift:
    @pytest.fixture
    def study(self):
        return example("covariate_shift")

    @pytest.fixture
    def images(self):
        return example("data").load().test_images

    def test_table_has_every_rate(self, study, monkeypatch, tmp_path, capsys):
        monkeypatch.setattr(study, "RATES", (0.1,))
        flags = ["--epochs", "1", "--seeds", "2", "--batch-size", "256", "--learning-rate", "2"]
        accuracies, printed = run(study.__name__, tmp_path, *flags), capsys.readouterr().out
        lines = printed.splitlines()
        assert lines[0].split() == ["learning", "rate", "no", "batch", "norm", "batch", "norm"]
        for index, rate in enumerate(("0.1", "2")):
            cells = [study.trials.spread(a[index, :, -1]) for a in accuracies.values()]
            assert " ".join(lines[1 + index].split()) == " ".join([rate, *cells])
        for a in accuracies.values():
            assert a.shape == (2, 2, 2)
            np.testing.assert_array_equal(a[0, :, 0], a[1, :, 0])

    def test_networks_side_by_side_train_as_one_alone(self, study):
        digits = example("data").load()
        images, labels = digits.train_images[:40], digits.train_labels[:40]
        starts = [study.create_state(jax.random.key(seed), 64, True) for seed in (0, 1)]
        states = jax.tree.map(lambda *v: jnp.stack([jnp.stack(v)] * 2), *starts)
        batches = np.arange(80, dtype=np.int32).reshape(2, 2, 20) % 40
        rates = jnp.array([0.1, 1.0])
        together = study.epoch_of_all(states, rates, batches, images, labels)
        alone = jax.jit(study.epoch)(starts[1], rates[0], batches[1], images, labels)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a[0, 1], b, rtol=1e-4, atol=1e-5), together, alone
        )
        assert np.abs(alone.params[0]["kernel"] - starts[1].params[0]["kernel"]).max() > 1e-4

    def test_evaluation_is_that_of_the_plain_network(self, study, images):
        state = study.create_state(jax.random.key(0), 64, False)
        x = images.reshape(len(images), -1).astype(np.float64)
        layers = [(np.float64(layer["kernel"]), np.float64(layer["bias"])) for layer in state.params]
        for kernel, bias in layers[:-1]:
            before = x @ kernel + bias
            x = 1 / (1 + np.exp(-before))
        predicted = np.argmax(x @ layers[-1][0] + layers[-1][1], axis=-1)
        labels = np.where(np.arange(len(images)) < 90, predicted, predicted + 1)
        accuracy, percentiles = study.evaluate(state, images, labels)
        assert accuracy == pytest.approx(90 / len(images))
        np.testing.assert_allclose(percentiles, np.percentile(before[:, 0], (15, 50, 85)), atol=1e-5)

    def test_batch_norm_is_before_each_sigmoid(self, study, images):
        state = study.create_state(jax.random.key(0), 64, True)
        _, before, batch_stats = study.mlp(state, images, train=True)
        np.testing.assert_allclose(before.mean(0), 0, atol=1e-5)
        np.testing.assert_allclose(before.std(0), 1, rtol=1e-2)
        assert len(batch_stats) == 3
        for stats, old in zip(batch_stats, state.batch_stats, strict=True):
            assert np.abs(stats["mean"] - old["mean"]).min() > 0

    @pytest.mark.slow
    def test_batch_norm_allows_higher_rates(self, study, monkeypatch, tmp_path):
        monkeypatch.setattr(study, "RATES", (10.0,))
        accuracies = run("covariate_shift", tmp_path, "--epochs", "40", "--learning-rate", "10")
        assert accuracies["batch norm"][0, :, -1].min() > 0.9
        assert accuracies["no batch norm"][0, :, -1].max() < 0.5


class TestFineTune:
    @pytest.fixture
    def study(self):
        return example("fine_tune")

    @pytest.fixture
    def new(self, study):
        return study.only(study.data.load(), range(5, 10))

    def test_table_has_every_way(self, study, tmp_path, capsys):
        flags = ["--epochs", "1", "--seeds", "1", "--batch-size", "50"]
        accuracies, printed = run(study.__name__, tmp_path, *flags), capsys.readouterr().out
        lines = printed.splitlines()
        assert lines[0].startswith("0 to 4, before fine-tuning: ")
        for (name, values), line in zip(accuracies.items(), lines[2:5], strict=True):
            assert np.shape(values) == (1, 1)
            difference = values[0][0] - accuracies["batch statistics"][0][0]
            assert line.split() == [*name.split(), f"{values[0][0]:.1%}", f"{difference:.1%}"]

    def test_what_is_frozen_stays(self, study, new):
        samples = study.few(new, seed=0)
        images, labels = samples.train_images, samples.train_labels
        trained = example("linen_training").create_state(study.MODEL, images, seed=0)
        for way in study.WAYS.values():
            state = study.start(trained, 0, images, way)
            after, _ = study.train_step(
                state, images, labels, model=study.MODEL, learning_rate=0.001, **way._asdict()
            )
            changed = jax.tree.map(lambda a, b: bool(np.any(a != b)), state[:2], after[:2])
            params, batch_stats = changed
            for layer in ("BatchNorm_0", "BatchNorm_1"):
                assert set(batch_stats[layer].values()) == {way.train}
                assert set(params[layer].values()) == {way.optimizer is not study.frozen_affine}
            for layer in ("Conv_0", "Conv_1", "Dense_0"):
                assert params[layer]["kernel"]

    def test_only_the_last_layer_is_new(self, study, new):
        images = new.train_images
        trained = example("linen_training").create_state(study.MODEL, images, seed=0)
        state = study.start(trained, 0, images, study.WAYS["batch statistics"])
        for name, layer in trained.params.items():
            assert (state.params[name] is layer) == (name != "Dense_0")
        kernels = (p["Dense_0"]["kernel"] for p in (state.params, trained.params))
        assert np.mean(np.equal(*kernels)) < 0.01
        assert state.batch_stats is trained.batch_stats

    def test_few_of_each_new_digit(self, study, new):
        assert set(new.train_labels) == set(new.test_labels) == {5, 6, 7, 8, 9}
        first, again, other = (study.few(new, seed) for seed in (0, 0, 1))
        for digits in (first, other):
            np.testing.assert_array_equal(np.bincount(digits.train_labels)[5:], [10] * 5)
            assert len(np.unique(digits.train_images, axis=0)) == 50
            assert digits.test_images is new.test_images
        np.testing.assert_array_equal(first.train_images, again.train_images)
        assert (first.train_images != other.train_images).any()
        pixels = {image.tobytes(): label for image, label in zip(*new[:2], strict=True)}
        for image, label in zip(*first[:2], strict=True):
            assert pixels[image.tobytes()] == label
