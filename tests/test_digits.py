"""The digits: scikit-learn's, and MNIST's files, whole and damaged."""

import gzip

import numpy as np
import pytest

from gallery import example, idx, write_mnist


class TestData:
    def test_scikit_learn_split(self):
        data = example("data")
        digits, again = data.load(), data.load()
        assert digits.train_images.shape == (1437, 8, 8, 1)
        assert digits.test_images.shape == (360, 8, 8, 1)
        for images, labels in (digits[:2], digits[2:]):
            assert images.dtype == np.float32 and labels.dtype == np.int32
            assert images.min() == 0 and images.max() == 1
            assert np.ptp(np.bincount(labels) / len(labels)) < 0.02
        for first, second in zip(digits, again, strict=True):
            np.testing.assert_array_equal(first, second)

    @pytest.mark.parametrize("compress", [False, True])
    def test_mnist_files(self, compress, tmp_path):
        arrays = write_mnist(tmp_path, compress=compress)
        digits = example("data").load(tmp_path)
        for part, images, labels in (("train", *digits[:2]), ("t10k", *digits[2:])):
            expected = arrays[f"{part}-images-idx3-ubyte"][..., None] / 255
            np.testing.assert_allclose(images, expected, rtol=1e-6)
            np.testing.assert_array_equal(labels, arrays[f"{part}-labels-idx1-ubyte"])
            assert images.dtype == np.float32 and labels.dtype == np.int32

    def test_compression_is_told_by_content(self, tmp_path):
        path = tmp_path / "labels.gz"
        path.write_bytes(idx(np.arange(5)))
        np.testing.assert_array_equal(example("data").read_idx(path, rank=1), np.arange(5))

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "expected an IDX file .* got an empty file"),
            (b"\0\0\x08\x01", "expected an IDX file"),
            (idx(np.zeros((2, 2))), "begins with 00 00 08 01, got 00 00 08 02"),
            (b"\0\0\x0d\x01" + bytes(8), "begins with 00 00 08 01, got 00 00 0d 01"),
            (idx(np.zeros(5))[:-1], r"expected 5 bytes of values for its shape \(5,\), got 4"),
            (idx(np.zeros(5)) + b"\0", r"expected 5 bytes of values for its shape \(5,\), got 6"),
            (gzip.compress(idx(np.zeros(5)))[:-9], "expected a whole gzip file, got a damaged one"),
            (gzip.compress(b"")[:5] + b"garbage", "expected a whole gzip file, got a damaged one"),
        ],
    )
    def test_malformed_file(self, content, message, tmp_path):
        path = tmp_path / "labels"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message) as error:
            example("data").read_idx(path, rank=1)
        assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)

    @pytest.mark.parametrize(
        ("name", "array", "message"),
        [
            ("train-labels-idx1-ubyte", np.zeros(95), "expected 96 labels, one per image, got 95"),
            ("train-labels-idx1-ubyte", np.full(96, 10), "expected labels from 0 to 9, got 10"),
            ("t10k-images-idx3-ubyte", np.zeros((20, 5, 5)), "of one size, got .6, 5. and .5, 5."),
            ("t10k-images-idx3-ubyte", np.zeros((0, 6, 5)), "expected at least one image"),
        ],
    )
    def test_files_that_disagree(self, name, array, message, tmp_path):
        write_mnist(tmp_path)
        (tmp_path / name).write_bytes(idx(array))
        with pytest.raises(ValueError, match=message):
            example("data").load(tmp_path)

    def test_missing_file(self, tmp_path):
        write_mnist(tmp_path)
        (tmp_path / "t10k-images-idx3-ubyte").unlink()
        message = "t10k-images-idx3-ubyte: expected this file, or the same with .gz, found neither"
        with pytest.raises(FileNotFoundError, match=message):
            example("data").load(tmp_path)

    def test_shuffled_epochs(self):
        epochs = list(example("data").shuffled_epochs(10, 4, epochs=3, seed=0))
        assert len(epochs) == 3
        for batches in epochs:
            assert batches.shape == (2, 4) and batches.dtype == np.int32
            assert len(np.unique(batches)) == 8
        assert (epochs[0] != epochs[1]).any()
