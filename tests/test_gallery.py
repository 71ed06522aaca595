"""The examples in pure functions, and raw pixels: what they train, evaluate, print and draw."""

import argparse
import functools

import jax
import numpy as np
import pytest

from gallery import (  # noqa: F401
    example,
    quick_compilation,
    run,
    write_mnist,
)

BATCH = "256"

pytestmark = pytest.mark.usefixtures("standard_promotion")


def cells(text, name):
    """The cells of the table's line that begins with `name`."""
    return next(line for line in text.splitlines() if line.startswith(name))[len(name) :]


def small(name, folder, *flags, batch_size=BATCH):
    return run(name, folder, "--epochs", "1", "--batch-size", batch_size, *flags)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Of two epochs and two seeds of the functional MLP."""
    flags = ["--epochs", "2", "--seeds", "2", "--batch-size", BATCH]
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return run("functional_mlp", tmp_path_factory.mktemp("out"), *flags)


def test_each_seed_has_its_order():
    orders = example("functional_training").orders
    args = argparse.Namespace(seed=3, seeds=2, batch_size=4, epochs=2)
    first, again = orders(10, args), orders(10, args)
    assert first.shape == (2, 2, 2, 4)
    np.testing.assert_array_equal(first, again)
    assert (first[:, 0] != first[:, 1]).any()


class TestFunctionalMLP:
    def test_averages_see_the_same_training(self, results):
        _, exponential, cumulative = example("functional_mlp").NORMS
        first, second = results[exponential, ""], results[cumulative, ""]
        assert first[0].shape == (2, 2)
        assert (first[1] != second[1]).all()

    def test_each_penalty_changes_the_training(self, results):
        for norm in example("functional_mlp").NORMS:
            losses = [
                results[norm, penalty][0][-1, 0] for penalty in example("functional_mlp").PENALTIES
            ]
            assert len(set(losses)) == 4

    def test_seeds_differ_and_learn(self, results):
        for train_loss, test_loss, accuracy in results.values():
            assert np.isfinite([train_loss, test_loss]).all()
            assert (train_loss[:, 0] != train_loss[:, 1]).all()
            assert (train_loss[1] < train_loss[0]).all()
            assert ((accuracy >= 0) & (accuracy <= 1)).all()

    def test_training_does_not_depend_on_the_average(self):
        mlp, digits = example("functional_mlp"), example("data").load()
        minibatch = digits.train_images[:64], digits.train_labels[:64]
        params = []
        for momentum in (0.99, None):
            norm = {"momentum": momentum}
            state = mlp.create_state(0, 64, norm)
            step = jax.jit(functools.partial(mlp.train_step, learning_rate=0.1, **norm))
            state = step(state, minibatch, 0.0, 0.5)
            params.append(state.params)
            assert (state.key != mlp.create_state(0, 64, norm).key).all()
        jax.tree.map(np.testing.assert_array_equal, *params)


class TestMultiTask:
    def test_runs_on_a_folder_of_mnist_files_and_prints(self, tmp_path, capsys):
        write_mnist(tmp_path, compress=True)
        flags = ["--seeds", "2", "--data-dir", str(tmp_path)]
        results = small("multi_task", tmp_path, *flags, batch_size="48")
        text = capsys.readouterr().out
        for way in ("shared", "per task", "joint"):
            assert results[way].shape == (1, 2, 2)
            assert f"{results[way][-1, :, 0].mean():.1%}" in cells(text, way)

    def test_shared_and_per_task_are_the_same_training(self):
        multi_task, digits = example("multi_task"), example("data").load()
        minibatch = digits.train_images[:64], digits.train_labels[:64]
        states = {}
        for way in multi_task.WAYS:
            state = multi_task.create_state(0, 64, way)
            step = functools.partial(multi_task.train_step, way=way, learning_rate=0.01)
            for _ in range(2):
                state = jax.jit(step)(state, minibatch)
            states[way] = state
        shared, per_task, joint = (states[way] for way in multi_task.WAYS)
        jax.tree.map(np.testing.assert_array_equal, shared.params, per_task.params)
        kernels = [state.params["layers"][0]["kernel"] for state in (shared, joint)]
        assert not np.allclose(*kernels)
        assert [len(s.batch_stats) for s in (shared, per_task, joint)] == [1, 2, 1]
        means = [stats[0]["mean"] for stats in per_task.batch_stats]
        assert not np.allclose(*means)


class TestImbalanced:
    def test_long_tail(self):
        data = example("data")
        labels = data.load().train_labels
        chosen, other = data.long_tail(labels, 50, seed=0), data.long_tail(labels, 50, seed=1)
        sizes = np.bincount(labels[chosen])
        assert sizes[0] == np.count_nonzero(labels == 0) and sizes[9] == round(sizes[0] / 50)
        assert (np.diff(sizes) < 0).all()
        assert len(np.unique(chosen)) == len(chosen) == len(other)
        assert set(chosen) != set(other)

    def test_runs_and_prints(self, tmp_path, capsys):
        results = small("imbalanced", tmp_path, "--seeds", "2", batch_size="64")
        text = capsys.readouterr().out
        assert len(results) == 14
        for (loss, norm, evaluation), accuracies in results.items():
            assert accuracies.shape == (2, 10)
            assert ((accuracies >= 0) & (accuracies <= 1)).all()
            column = 0 if loss == "plain loss" else 2
            shown = cells(text, f"{norm}, evaluated {evaluation}").replace(" ± ", "±").split()
            assert shown[column].startswith(f"{accuracies.mean():.1%}")

    def test_weights_reach_statistics_and_loss(self):
        imbalanced, digits = example("imbalanced"), example("data").load()
        labels = digits.train_labels[:64]
        weights = np.where(labels == 0, 50, 1).astype(np.float32)
        state = imbalanced.create_state(0, 64, {"momentum": 0.9})
        minibatch = digits.train_images[:64], labels, weights

        def step(norm, loss):
            options = {"norm": norm, "loss": f"{loss} loss", "learning_rate": 0.01}
            new = imbalanced.train_step(state, minibatch, **options)
            return new.batch_stats["mean"], new.params["output"]["kernel"]

        settings = (("plain", "plain"), ("plain", "weighted"), ("weighted", "plain"))
        found = jax.jit(lambda: [step(*setting) for setting in settings])()
        (plain, kernel), (same, other), (weighted, _) = found
        np.testing.assert_array_equal(plain, same)
        assert not np.allclose(kernel, other)
        assert not np.allclose(plain, weighted)


class TestRawPixels:
    def test_runs_and_prints(self, tmp_path, capsys):
        runs = small("raw_pixels", tmp_path, "--seeds", "1")
        text = capsys.readouterr().out
        assert len(runs) == 6
        for name, (only,) in runs.items():
            assert f"{only.test_accuracy[0]:.1%}" in cells(text, name)

    def test_batch_norm_first_sees_standardized_pixels(self):
        raw_pixels, digits = example("raw_pixels"), example("data").load()
        cnn = example("digits_cnn").CNN(True)
        first = example("digits_cnn").CNN(True, input_norm=True)
        raw, standardized = raw_pixels.raw(digits), raw_pixels.standardized(digits)
        assert raw.train_images.max() == 255
        variables = first.init(jax.random.key(0), raw.train_images[:1], train=False)
        options = {"train": True, "mutable": ["batch_stats"]}
        logits, _ = first.apply(variables, raw.train_images, **options)
        variables = {
            kind: {k: v for k, v in tree.items() if k != "input_norm"}
            for kind, tree in variables.items()
        }
        expected, _ = cnn.apply(variables, standardized.train_images, **options)
        np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3)
