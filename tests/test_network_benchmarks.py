"""The benchmarks of networks: train_step, compile_time and memory refuse a wrong norm, and write."""

import functools
import json

import jax
import jax.numpy as jnp
import pytest

pytest.importorskip("matplotlib")

import jbn
from benchmarks import compile_time, memory, train_step
from benchmarks.shared import networks, timing

pytestmark = pytest.mark.usefixtures("standard_promotion")


def run(command, folder, flags):
    """What `main` returns, and has written."""
    results = command.main([*flags.split(), "--out", str(folder)])
    (written,) = folder.glob("*.json")
    assert json.loads(written.read_text()).keys() == results.keys()
    return results["figures"]


@pytest.mark.parametrize("wrong", [jnp.nan, 1.0])
def test_what_differs_is_refused(wrong):
    tree = {"a": jnp.array([1.0, 100.0]), "b": jnp.array(0.0)}
    networks.require_equal("x", (tree, tree), (tree, tree))
    other = {**tree, "b": jnp.array(wrong)}
    for pair in ((other, tree), (tree, other)):
        with pytest.raises(RuntimeError, match="x differs from flax"):
            networks.require_equal("x", pair, (tree, tree))


def test_a_step_with_a_wrong_norm_is_refused():
    # Other running statistics only: the loss and the gradients are the same.
    wrong = functools.partial(jbn.linen.BatchNorm, momentum=0.5)
    norms = {"flax": networks.NORMS["flax"], "jbn": wrong}
    small = {name: networks.Stack(norm, features=(4,)) for name, norm in norms.items()}
    with pytest.raises(RuntimeError, match=r"jbn differs from flax, .*statistics by 4.*nothing"):
        train_step.prepare(small, *networks.data((4, 4, 4, 1), 0), 0)


@pytest.mark.slow
def test_a_gradient_with_a_wrong_norm_is_refused():
    flax, wrong = (
        memory.Case(networks.Stack(networks.NORMS[norm], activation, (4,)))
        for norm, activation in (("flax", jax.nn.relu), ("jbn", jnp.abs))
    )
    with pytest.raises(RuntimeError, match="stack, wrong differs from flax"):
        memory.measure("stack", {"flax": flax, "wrong": wrong}, (4, 4, 4, 1), 1, 0)


@pytest.mark.slow
def test_train_step(tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "BLOCK", 1e-4)
    flags = "--network small_cnn --batch 4 --rounds 2 --runs 1"
    rows = run(train_step, tmp_path, flags)["small_cnn"]
    assert rows.keys() == networks.NORMS.keys() and all(row["ms"][0] > 0 for row in rows.values())
    assert rows["no norm"]["by no norm"] == rows["flax"]["by flax"] == [1]


@pytest.mark.slow
def test_compile_time_traces_every_time(tmp_path, monkeypatch):
    traced, loss_of = [], networks.loss_of

    def counted(model):
        def counting(*args):
            traced.append(model)
            return loss_of(model)(*args)

        return counting

    monkeypatch.setattr(networks, "loss_of", counted)
    found = run(compile_time, tmp_path, "--small --size 8 --batch 2 --repeats 1")
    assert len(traced) == len(networks.NORMS) + 1  # one to warm up
    for row in found.values():
        seconds = {stage: values[0] for stage, values in row["seconds"].items()}
        assert seconds.pop("total") == pytest.approx(sum(seconds.values()))
        assert min(seconds.values()) > 0 and min(row["size"].values()) > 0
    assert (
        found["no norm"]["size"]["optimized instructions"]
        < found["jbn"]["size"]["optimized instructions"]
    )


@pytest.mark.slow
def test_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "BLOCK", 1e-4)
    sizes = "--batch 8 --size 8 --width 4 --layers 1 --rounds 2"
    rows = run(memory, tmp_path, f"--network leaky_relu_stack {sizes}")["leaky_relu_stack"]
    kept = {name: row["kept by JAX"] for name, row in rows.items()}
    assert kept["jbn, in place"] < kept["jbn"] < kept["flax"]
    assert all(row["compiled"] > 0 and min(row["time by flax"]) > 0 for row in rows.values())


@pytest.mark.parametrize(
    ("function", "size"),
    [
        (lambda x, y: (x * y, 0), 0),  # x and y: arguments
        (lambda x, y: (jnp.sin(x + y), 0), 128),  # its cosine
        (lambda x, y: ((z := jnp.exp(x)) * z, 0), 128),  # z, once, though wanted more than once
        (lambda x, y: (x + 1, jnp.sin(x)), 0),  # nothing for what has no derivative
    ],
)
def test_what_is_kept_is_counted_once(function, size):
    x, y = jax.random.normal(jax.random.key(0), (2, 4, 8))
    assert memory.residual_bytes(function, x, y) == size


@pytest.mark.slow
def test_one_layer_keeps_x_and_vectors():
    for dtype in ("float32", "bfloat16"):
        kept = memory.one_layer((4, 8, 8, 2), dtype)
        assert 1 <= kept["jbn"] <= 1.2 and kept["flax"] >= 2
