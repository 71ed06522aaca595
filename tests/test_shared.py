"""What the examples share: digits, spread and tables, pictures, moved images, training side by side."""

import gzip

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from matplotlib.figure import Figure

from gallery import close, example


def idx(array):
    """An array of bytes as MNIST stores it."""
    sizes = np.array(array.shape, ">u4").tobytes()
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


class TestData:
    def test_scikit_learn_split(self):
        digits = example("shared.data").load()
        assert digits.train_images.shape == (1437, 8, 8, 1)
        assert digits.test_images.shape == (360, 8, 8, 1)
        for images, labels in (digits[:2], digits[2:]):
            assert images.dtype == np.float32 and labels.dtype == np.int32
            assert images.min() == 0 and images.max() == 1
            assert np.ptp(np.bincount(labels) / len(labels)) < 0.02
        close(tuple(example("shared.data").load()), tuple(digits), rtol=0, atol=0)

    @pytest.mark.parametrize("compress", [False, True])
    def test_mnist_files(self, compress, tmp_path):
        rng = np.random.default_rng(0)
        arrays = {}
        for part, size in (("train", 96), ("t10k", 20)):
            arrays[f"{part}-images-idx3-ubyte"] = rng.integers(256, size=(size, 6, 5))
            arrays[f"{part}-labels-idx1-ubyte"] = rng.integers(10, size=size)
        for name, array in arrays.items():
            content = gzip.compress(idx(array)) if compress else idx(array)
            (tmp_path / f"{name}{'.gz' * compress}").write_bytes(content)
        digits = example("shared.data").load(tmp_path)
        for part, images, labels in (("train", *digits[:2]), ("t10k", *digits[2:])):
            expected = arrays[f"{part}-images-idx3-ubyte"][..., None] / 255
            np.testing.assert_allclose(images, expected, rtol=1e-6)
            np.testing.assert_array_equal(labels, arrays[f"{part}-labels-idx1-ubyte"])
            assert images.dtype == np.float32 and labels.dtype == np.int32

    @pytest.mark.parametrize(
        ("content", "error", "message"),
        [
            (None, FileNotFoundError, "labels.gz"),
            (b"<html>", ValueError, "labels: expected one of MNIST's files, got .* begins 3c68746d"),
            (idx(np.zeros(5))[:-1], ValueError, "cannot reshape array of size 4"),
        ],
    )
    def test_missing_or_damaged_file(self, content, error, message, tmp_path):
        if content is not None:
            (tmp_path / "labels").write_bytes(content)
        with pytest.raises(error, match=message):
            example("shared.data").read_idx(tmp_path / "labels")

    def test_minibatches(self):
        minibatches = example("shared.data").minibatches
        epochs = list(minibatches(10, 4, epochs=3, seed=0))
        assert len(epochs) == 3
        for batches in epochs:
            assert batches.shape == (2, 4) and len(np.unique(batches)) == 8
        assert (epochs[0] != epochs[1]).any()
        with pytest.raises(ValueError, match=r"`batch_size` must be at most 10, .* got 11"):
            next(minibatches(10, 11, epochs=1, seed=0))


class TestReport:
    @pytest.mark.parametrize(
        ("values", "text"),
        [
            ([0.97, 0.98, 0.972], "97.4% ± 0.5"),
            (np.float32([0.5, 0.25]), "37.5% ± 17.7"),
            ([0.5], "50.0%"),
        ],
    )
    def test_spread_is_a_sample_s_deviation(self, values, text):
        assert example("shared.report").spread(values) == text

    def test_table_of_runs(self):
        run = example("shared.runs").Run([0.5, 0.9], [1.0, 0.1], [9.0, 1.0])
        again = run._replace(test_accuracy=[0.5, 0.7])
        text = example("shared.report").table_of_runs({("net", "rate 1"): [run, again]})
        last = text.splitlines()[-1].replace(" ± ", "±").split()
        # Without the first epoch, which compiles, it took a second.
        assert last == ["net,", "rate", "1", "50.0%±0.0", "80.0%±14.1", "2", "1.00"]


class TestPictures:
    def test_saved_under_the_limit(self, tmp_path, capsys):
        figure = Figure(figsize=(8, 8), dpi=100)
        figure.figimage(np.random.default_rng(0).random((800, 800)))
        path = tmp_path / "noise.png"
        figure.savefig(path)
        assert path.stat().st_size > 150_000
        example("shared.pictures").save(figure, path)
        assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size < 150_000
        assert capsys.readouterr().out == f"{path}\n"


@pytest.mark.usefixtures("standard_promotion")
class TestAugmentation:
    images = np.random.default_rng(0).normal(size=(8, 6, 6, 1)).astype(np.float32)

    def view(self, turn=0.0, scale=1.0, shift=(0.0, 0.0)):
        view = example("shared.augmentation")._view
        return np.asarray(view(self.images[0], turn, scale, jnp.array(shift), 6))

    def test_shift_by_a_pixel(self):
        moved = self.view(shift=(1 / 6, 0.0))
        np.testing.assert_allclose(moved[:-1], self.images[0, 1:], atol=1e-5)
        np.testing.assert_allclose(moved[-1], 0, atol=1e-5)

    def test_quarter_turn(self):
        inner = np.s_[1:-1, 1:-1]
        expected = np.rot90(self.images[0], -1)[inner]
        np.testing.assert_allclose(self.view(turn=np.pi / 2)[inner], expected, atol=1e-5)

    def test_views_are_the_key_s_and_the_image_s_own(self):
        same, views = np.stack([self.images[0]] * 3), example("shared.augmentation").random_views
        first, again, other = (np.asarray(views(jax.random.key(k), same, 6)) for k in (0, 0, 1))
        np.testing.assert_array_equal(first, again)
        assert (first != other).any() and (first[0] != first[1]).any()


@pytest.mark.usefixtures("standard_promotion")
def test_side_by_side_is_each_alone():
    mlp, side_by_side = example("models.mlp"), example("shared.side_by_side")
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(20, 4)).astype(np.float32), np.arange(20) % 3
    optimizer = optax.adam(0.1)

    def loss(params, batch_stats, minibatch):
        x, labels = minibatch
        logits, batch_stats = mlp.apply(params, batch_stats, x, train=True)
        return side_by_side.cross_entropy(logits, labels), batch_stats

    def train(seeds):
        states = side_by_side.create(lambda key: mlp.init(key, (4, 5, 3)), optimizer, seeds)
        (order,) = side_by_side.orders(20, 5, 1, seeds)
        return side_by_side.epoch(loss, optimizer, states, order, (x, labels))

    # Neither a neighbour nor the place matters.
    first, second = train([3, 7]), train([9, 3])
    close(jax.tree.map(lambda v: v[0], first), jax.tree.map(lambda v: v[1], second))
    kernels = first.params[0]["kernel"]
    assert not np.allclose(kernels[0], kernels[1])
