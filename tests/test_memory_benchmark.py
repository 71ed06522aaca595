"""The memory benchmark: what it counts as kept, the search for a batch, its targets, its refusals."""

import json
import math
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

pytest.importorskip("rich")

from benchmarks import compiled_memory, memory, networks
from benchmarks.compiled_memory import Case, largest_batch, residual_bytes
from gallery import ROOT, quick_compilation  # noqa: F401

X = jax.ShapeDtypeStruct((4, 8), jnp.float32)


@pytest.mark.parametrize(
    ("function", "size"),
    [
        (lambda x, y: (x * y, 0), 0),  # x and y: arguments
        (lambda x, y: (jnp.sin(x + y), 0), 128),  # its cosine
        (lambda x, y: ((z := jnp.exp(x)) * z, 0), 128),  # z, once, though wanted more than once
        (lambda x, y: (x + 1, jnp.sin(x)), 0),  # nothing for what has no derivative
    ],
)
def test_residuals(function, size):
    assert residual_bytes(function, X, X) == size


@pytest.mark.usefixtures("standard_promotion")
def test_one_layer_keeps_x_and_vectors():
    found = memory.one_layer((4, 4, 4, 8))
    for dtype, row in found.items():
        vectors = 8 * 4 * 8  # at most so many, of float32
        assert row["x"] <= row["jbn"] <= row["x"] + vectors, dtype
        assert row["flax"] >= 2 * row["x"], dtype


def affine(batch):
    return 1000 + 10 * batch


@pytest.mark.parametrize("total", [affine, lambda n: affine(n) + 64 * (n % 3) + n * n // 50])
@pytest.mark.parametrize("budget", [900, 1011, 1500, 5000, 123_456])
def test_the_largest_batch(total, budget):
    found = largest_batch(total, 16, budget)
    assert found == 0 or total(found) <= budget
    assert total(found + 1) > budget


def test_the_largest_batch_takes_few_compilations():
    asked = []
    largest_batch(lambda n: asked.append(n) or affine(n), 16, 123_456)
    assert len(asked) <= 4 and len(set(asked)) == len(asked)


@pytest.mark.usefixtures("standard_promotion")
def test_a_wrong_norm_is_not_timed(monkeypatch):
    flax, own = (
        Case(networks.Stack(norm, activation, layers=1))
        for norm, activation in (
            (networks.NORMS["flax"], jax.nn.relu),
            (networks.NORMS["jbn"], jnp.abs),
        )
    )
    monkeypatch.setattr(memory, "cases", lambda _: {"relu stack": {"flax": flax, "jbn": own}})
    monkeypatch.setitem(memory.IMAGES, "relu stack", (4, 4, 4))
    with pytest.raises(RuntimeError, match="relu stack, jbn differs from flax"):
        memory.times(True, {"relu stack": 4}, 1, 0)


def compiled(part):
    """As if jbn's cases took so large a part of what flax's take."""
    return {
        compiler: {
            network: {
                name: {"temp": size, "largest batch": 1}
                for name in rows
                for size in [100 * part if name.startswith("jbn, ") else 100]
            }
            for network, rows in compiled_memory.cases(True).items()
        }
        for compiler in compiled_memory.COMPILERS
    }


@pytest.mark.usefixtures("standard_promotion")
def test_prints_writes_and_judges(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(memory, "measure", lambda compiler, _: compiled(0.7)[compiler])
    rows = compiled_memory.cases(True)
    seconds = {network: {name: [1.0] for name in rows[network]} for network in rows}
    monkeypatch.setattr(memory, "times", lambda *_: seconds)
    monkeypatch.setattr(memory, "BATCHES", dict.fromkeys(rows, 2))
    results = memory.main(["--quick", "--out", str(tmp_path)])
    written = json.loads((tmp_path / "memory.json").read_text(), parse_constant=pytest.fail)
    assert set(written) == set(results)
    targets = results["targets"]
    stack = targets["leaky_relu stack, jbn, in place / flax: temp, sequential"]
    assert stack == {"worst": 0.7, "target": 0.5, "met": False}
    assert all(verdict["met"] for name, verdict in targets.items() if name.endswith("time"))
    assert all(math.isfinite(verdict["worst"]) for verdict in targets.values())
    kept = results["figures"]["leaky_relu stack"]
    assert kept["jbn, in place"]["residuals"] < kept["jbn"]["residuals"] < kept["flax"]["residuals"]
    assert "NOT MET" in capsys.readouterr().out
    png = (tmp_path / "memory.png").read_bytes()
    assert png.startswith(b"\x89PNG") and len(png) < 150_000


@pytest.mark.slow
def test_a_process_with_flags_of_its_own():
    batches = dict.fromkeys(compiled_memory.IMAGES, 2)
    found = compiled_memory.measure("sequential", {"quick": True, "batches": batches, "budget": None})
    assert {n: set(r) for n, r in found.items()} == {
        n: set(r) for n, r in compiled_memory.cases(True).items()
    }
    assert all(0 < c["temp"] < c["total"] for r in found.values() for c in r.values())


def test_the_in_place_stack_needs_half_of_what_flax_does():
    """Flax's batch norm and leaky_relu, twelve times; XLA's figure, which has no noise."""
    program = """
from benchmarks import compiled_memory
stack = compiled_memory.cases()[compiled_memory.STACK]
for name in ("flax", "jbn", "jbn, in place"):
    print(compiled_memory.compiled_bytes(stack[name], (4, 16, 16, 32))["temp"])
"""
    environment = {**os.environ, "XLA_FLAGS": compiled_memory.SEQUENTIAL}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, check=True)
    flax, plain, in_place = map(int, done.stdout.split())
    assert in_place <= 0.5 * flax
    assert plain <= 0.85 * flax
