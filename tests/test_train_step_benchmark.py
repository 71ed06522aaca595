"""The benchmark of a training step: it refuses a wrong norm, takes its ratios, and writes."""

import functools
import json

import jax
import jax.numpy as jnp
import pytest

pytest.importorskip("rich")

import jbn
from benchmarks import networks, train_step
from gallery import quick_compilation  # noqa: F401

pytestmark = pytest.mark.usefixtures("standard_promotion")
SHAPE = (4, 4, 4, 1)


def test_refuses_a_wrong_norm():
    # Other running statistics only: the loss and the gradients are the same.
    wrong = functools.partial(jbn.linen.BatchNorm, momentum=0.5)
    norms = {"flax": networks.NORMS["flax"], "jbn": wrong}
    small = {name: networks.SmallCNN(norm) for name, norm in norms.items()}
    with pytest.raises(RuntimeError, match=r"jbn differs from flax, .*statistics by 4.*nothing"):
        train_step.prepare(small, *networks.data(SHAPE, 0), 0)


def test_differences():
    tree = {"a": jnp.array([1.0, 100.0]), "b": jnp.array(0.0)}
    assert networks.difference(tree, tree) == 0
    assert networks.difference({**tree, "a": tree["a"] + 1}, tree) == pytest.approx(0.01)
    networks.require_equal("x", (tree, tree), (tree, tree))
    for wrong in (jnp.nan, 1.0):
        other = {**tree, "b": jnp.array(wrong)}
        for pair in ((other, tree), (tree, other)):
            with pytest.raises(RuntimeError, match="x differs from flax"):
                networks.require_equal("x", pair, (tree, tree))


def test_no_scale_is_zero_at_first():
    model = networks.Stack(networks.NORMS["jbn"], jax.nn.relu, layers=1)
    state = networks.create_state(model, jnp.zeros((1, 2, 2, 8)), 0)
    (scale,) = (layer["scale"] for layer in state.params.values() if "scale" in layer)
    assert 0.5 <= scale.min() < scale.max() <= 1.5


def figures(flax, own):
    return {"network": {"flax": {"overhead": flax}, "jbn": {"overhead": own}}}


@pytest.mark.parametrize(
    ("flax", "own", "met"), [(0.2, 0.1, True), (0.2, 0.11, False), (-0.1, -0.2, False)]
)
def test_the_target(flax, own, met):
    (verdict,) = train_step.judge(figures(flax, own)).values()
    assert verdict["met"] is met


def test_prints_and_writes(tmp_path, capsys):
    flags = ["--quick", "--network", "small CNN", "--out", str(tmp_path)]
    results = train_step.main(flags)
    rows = results["figures"]["small CNN"]
    assert set(rows) == set(networks.NORMS) and all(row["ms"] > 0 for row in rows.values())
    assert rows["no norm"]["overhead"] == 0
    written = json.loads((tmp_path / "train_step.json").read_text(), parse_constant=pytest.fail)
    assert set(written) == set(results)
    assert "overhead of jbn / overhead of flax" in capsys.readouterr().out
    png = (tmp_path / "train_step.png").read_bytes()
    assert png.startswith(b"\x89PNG") and len(png) < 150_000
