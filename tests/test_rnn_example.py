"""The recurrent example: missing rows, the LSTM, what the mask does, the table and the picture."""

import functools

import jax
import numpy as np
import pytest

from gallery import example, quick_compilation, run  # noqa: F401

BATCH_NORM, PADDING_COUNTED, NO_BATCH_NORM = (
    "batch norm",
    "batch norm, padding counted",
    "no batch norm",
)
pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture
def rnn(monkeypatch):
    module = example("rnn")
    monkeypatch.setattr(module, "HIDDEN", 6)
    monkeypatch.setattr(module, "LAYERS", 1)
    return module


@pytest.fixture
def sequences(rnn):
    """Sequences of 2 to 4 steps with 3 features: (16, 4, 3, 1), NaN in the padding."""
    images = np.random.default_rng(0).uniform(size=(16, 4, 3, 1)).astype(np.float32)
    return rnn.shortened(images, 0)


def lengths(images):
    return (~np.isnan(images[:, :, 0, 0])).sum(1)


@pytest.mark.parametrize(("height", "least"), [(8, 4), (5, 3)])
def test_shortened_drops_the_last_rows(rnn, height, least):
    images = np.random.default_rng(0).uniform(size=(200, height, 2, 1)).astype(np.float32)
    short = rnn.shortened(images, seed=3)
    assert short.dtype == np.float32
    assert set(lengths(short)) == set(range(least, height + 1))
    for image, cut, length in zip(images, short, lengths(short), strict=True):
        np.testing.assert_array_equal(cut[:length], image[:length])
        assert np.isnan(cut[length:]).all()
    np.testing.assert_array_equal(rnn.shortened(images, seed=3), short)
    assert (lengths(rnn.shortened(images, seed=4)) != lengths(short)).any()


def sigmoid(v):
    return 1 / (1 + np.exp(-v))


def test_lstm_is_its_equations(rnn, sequences):
    """Without batch norm, one sequence at a time, in float64."""
    x = np.nan_to_num(sequences[..., 0])
    mask = np.arange(4) < lengths(sequences)[:, None]
    layer = rnn.LSTM(NO_BATCH_NORM)
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


@functools.partial(jax.jit, static_argnums=0)
def trained(model, variables, images):
    """Logits, running statistics and gradients of a training step."""

    def loss(params):
        logits, updated = model.apply(
            {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
        )
        return (logits**2).sum(), (logits, updated.get("batch_stats", {}))

    grads, (logits, batch_stats) = jax.grad(loss, has_aux=True)(variables["params"])
    return logits, batch_stats, grads


@pytest.mark.parametrize("norm", [BATCH_NORM, PADDING_COUNTED])
def test_padding_matters_only_where_it_is_counted(rnn, sequences, norm):
    model = rnn.Classifier(norm)
    variables = model.init(jax.random.key(0), sequences, train=False)
    nothing = np.full((16, 3, 3, 1), np.nan, np.float32)
    short = trained(model, variables, sequences)
    long = trained(model, variables, np.concatenate([sequences, nothing], axis=1))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(short))
    compare = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    if norm == BATCH_NORM:
        jax.tree.map(compare, short, long)
    else:
        for part in range(3):
            with pytest.raises(AssertionError, match="Not equal"):
                jax.tree.map(compare, short[part], long[part])


def test_first_statistics_are_those_of_the_steps_there_are(rnn, sequences):
    model = rnn.Classifier(BATCH_NORM)
    variables = model.init(jax.random.key(0), sequences, train=False)
    _, batch_stats, _ = trained(model, variables, sequences)
    steps = sequences[..., 0][~np.isnan(sequences[:, :, 0, 0])]
    projected = steps @ np.asarray(variables["params"]["LSTM_0"]["Dense_0"]["kernel"])
    actual = batch_stats["LSTM_0"]["BatchNorm_0"]
    np.testing.assert_allclose(actual["mean"], 0.1 * projected.mean(0), atol=1e-6)
    np.testing.assert_allclose(actual["var"], 0.9 + 0.1 * projected.var(0), atol=1e-6)


def test_main_reports_every_network_rate_and_seed(rnn, tmp_path, capsys):
    runs = run("rnn", tmp_path, "--epochs", "1", "--seeds", "1", "--batch-size", "256")
    printed = capsys.readouterr()
    assert len(runs) == 6
    assert all(np.isfinite(run.train_loss).all() for run in runs)
    lines = printed.out.splitlines()
    settings = ((norm, rate) for rate in (1e-3, 1e-2) for norm in rnn.NORMS)
    for line, setting, one in zip(lines[1:], settings, runs, strict=False):
        assert one[:2] == setting
        assert line.startswith("{}, learning rate {:g} ".format(*setting))
        assert f" {one.test_accuracy[-1]:.1%} " in line
    assert "6/6" in printed.err
