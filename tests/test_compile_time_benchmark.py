"""The benchmark of compilation: what it counts, that nothing is cached, and what it writes."""

import json

import jax
import pytest

pytest.importorskip("rich")

from benchmarks import compile_time, networks
from gallery import quick_compilation  # noqa: F401

pytestmark = pytest.mark.usefixtures("standard_promotion")

STABLEHLO = """module @f {
  func.func public @main(%arg0: tensor<2xf32>) -> tensor<2xf32> {
    %cst = stablehlo.constant dense<1.0> : tensor<f32>
    %0:2 = "stablehlo.case"(%arg0) ({
      stablehlo.return %cst : tensor<f32>
    }) : (tensor<2xf32>) -> tensor<2xf32>
    return %0 : tensor<2xf32>
  }
}
"""
HLO = """HloModule f

%body (p: f32[2]) -> f32[2] {
  %p = f32[2]{0} parameter(0)
  ROOT %add.1 = f32[2]{0} add(%p, %p), metadata={op_name="a = b"}
}

ENTRY main {
  a.0 = f32[2]{0} parameter(0)
  ROOT fusion = f32[2]{0} fusion(a.0), kind=kLoop, calls=%body
}
"""


def test_instructions_are_counted():
    size = compile_time.program_size(STABLEHLO, HLO)
    assert size["StableHLO instructions"] == 3
    assert size["optimized instructions"] == 4
    assert size["StableHLO bytes"] == len(STABLEHLO) and size["optimized bytes"] == len(HLO)


def totals(flax, own):
    return {"flax": {"seconds": {"total": flax}}, "jbn": {"seconds": {"total": own}}}


@pytest.mark.parametrize(
    ("flax", "own", "met"), [([2.0], [2.0], True), ([2.0, 1.0, 1.0], [1.0, 1.1, 1.1], False)]
)
def test_the_target_is_of_the_median_ratio(flax, own, met):
    (verdict,) = compile_time.judge(totals(flax, own)).values()
    assert verdict["met"] is met


def test_every_repetition_traces_and_compiles_again(tmp_path, capsys, monkeypatch):
    def make(norm, features):
        del features
        return networks.SmallCNN(norm)

    monkeypatch.setattr(compile_time, "resnet18", make)
    traced, enabled = [], jax.config.jax_enable_compilation_cache
    step_of = networks.step_of

    def counted(model):
        step = step_of(model)

        def counting(*args):
            traced.append(type(model.norm()))
            assert not jax.config.jax_enable_compilation_cache
            return step(*args)

        return counting

    monkeypatch.setattr(networks, "step_of", counted)
    results = compile_time.main(["--quick", "--out", str(tmp_path)])
    assert len(traced) == len(networks.NORMS) + 1  # one to warm up
    assert jax.config.jax_enable_compilation_cache == enabled
    for row in results["figures"].values():
        seconds = row["medians"]
        assert seconds["total"] == pytest.approx(sum(seconds[s] for s in compile_time.STAGES))
        assert min(seconds.values()) > 0 and min(row["size"].values()) > 0
    sizes = {name: row["size"]["StableHLO instructions"] for name, row in results["figures"].items()}
    assert sizes["no norm"] < min(sizes["flax"], sizes["jbn"])
    written = json.loads((tmp_path / "compile_time.json").read_text(), parse_constant=pytest.fail)
    assert set(written) == set(results)
    assert "trace, lower and compile: jbn / flax" in capsys.readouterr().out
    png = (tmp_path / "compile_time.png").read_bytes()
    assert png.startswith(b"\x89PNG") and len(png) < 150_000
