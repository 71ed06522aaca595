"""The programs of GPUs and TPUs: the bytes, the memory and the all-reduces that jbn has there, pinned.

Where a compiler is not installed its tests are skipped: `pip install -e ".[test,programs-gpu]"`, and
`programs-tpu` in an environment of its own.
"""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from benchmarks.programs import command, figures, hlo
from benchmarks.programs.chips import COMPILERS, PLATFORMS
from benchmarks.programs.layers import CASES, DTYPES
from benchmarks.shared import report

CHIPS = {"gpu": "H200", "tpu": "v5e"}
RESULTS = report.FOLDER / "results/programs.json"


def compiled(on, parts, quick=True):
    """The figures of one chip by part, from a process of its own."""
    if not COMPILERS[on].installed:
        pytest.skip(command.missing(on))
    return {part: found for _, part, found in command.measured(on, [CHIPS[on]], parts, quick)}


@pytest.fixture(scope="module")
def gpu():
    return compiled("gpu", ["layers", "networks", "all-reduces"])


@pytest.fixture(scope="module")
def tpu():
    return compiled("tpu", ["layers", "networks", "all-reduces"])


@pytest.fixture(scope="module")
def gpu_memory():
    return compiled("gpu", ["memory"], quick=False)["memory"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("on", "forward", "backward"), [("gpu", 3.17, 5.08), ("tpu", 3.014, 5.01)])
def test_passes_over_x_of_a_layer(request, on, forward, backward, case, dtype):
    row = request.getfixturevalue(on)["layers"][dtype][case]
    assert 3 <= row["jbn"]["forward"] <= forward
    assert 5 <= row["jbn"]["backward"] <= min(backward, row["flax"]["backward"])
    assert row["flax"]["forward"] >= 3


@pytest.mark.parametrize(
    ("on", "dtype", "limit"),
    [
        ("gpu", "float32", 1.016),
        ("gpu", "bfloat16", 1.0),
        ("tpu", "float32", 1.001),
        ("tpu", "bfloat16", 1.011),
    ],
)
def test_bytes_of_a_network_against_flax(request, on, dtype, limit):
    row = request.getfixturevalue(on)["networks"]["3 bottleneck blocks"][dtype]
    assert 0.9 < row["jbn"]["GB"] / row["flax"]["GB"] <= limit


@pytest.mark.parametrize(
    ("on", "count", "usual", "most"), [("gpu", 8, 2, 2), ("tpu", 16, 1, 2)], ids=["gpu", "tpu"]
)
def test_all_reduces_of_a_layer(request, on, count, usual, most):
    ways = request.getfixturevalue(on)["all-reduces"][f"{count} chips"]
    assert ways["sharded jit"]["jbn"] == {"forward": [usual, most], "backward": [1, 1]}
    assert ways["axis_name"]["jbn"] == {"forward": [1, 1], "backward": [1, 1]}
    for way in ways.values():
        assert way["flax"] == {"forward": [1, 1], "backward": [1, 1]}


@pytest.mark.parametrize(
    ("name", "dtype", "limit"),
    [
        ("jbn in place", "float32", 0.55),
        ("jbn in place", "bfloat16", 0.53),
        ("jbn, relu, remat_policy", "float32", 0.59),
        ("jbn, relu, remat_policy", "bfloat16", 0.62),
    ],
)
def test_memory_on_a_gpu_against_flax(gpu_memory, name, dtype, limit):
    # A tensor per layer at least: the output of its convolution, or the layer's own.
    assert gpu_memory[dtype][name]["tensors"] >= 12
    assert gpu_memory[dtype][name]["against flax"] <= limit


PROGRAM = """HloModule jit_f, is_scheduled=true

%fused (param_0: f32[8,4], param_1: f32[100,4]) -> f32[8,4] {
  %param_1 = f32[100,4]{1,0} parameter(1)
  %param_0 = f32[8,4]{1,0} parameter(0)
  %part = f32[8,4]{1,0} slice(%param_1), slice={[0:8], [0:4]}
  ROOT %sum = f32[8,4]{1,0} add(%param_0, %part)
}

%few (p: f32[4]) -> f32[4] {
  ROOT %first = f32[4]{0} all-reduce(%p), to_apply=%add
}

%many (q: f32[4]) -> f32[4] {
  %second = f32[4]{0} all-reduce-start(%q), to_apply=%add
  ROOT %third = f32[4]{0} fusion(%second), kind=kLoop, calls=%few
}

%called (c: f32[8,4]) -> f32[8,4] {
  %c = f32[8,4]{1,0} parameter(0)
  ROOT %twice = f32[8,4]{1,0} multiply(%c, %c)
}

ENTRY %main.1 (x: f32[8,4], z: f32[100,4]) -> (f32[8,4], bf16[8,4]) {
  %x = f32[8,4]{1,0:T(8,128)} parameter(0)
  %z = f32[100,4]{1,0} parameter(1)
  %fusion = f32[8,4]{1,0:T(8,128)S(1)} fusion(%x, %z), kind=kLoop, calls=%fused
  %call = f32[8,4]{1,0} call(%fusion), to_apply=%called
  %copy-start = (f32[8,4]{1,0:T(8,128)S(1)}, f32[8,4]{1,0}, u32[]{:S(2)}) copy-start(%call)
  %copy-done = f32[8,4]{1,0:T(8,128)S(1)} copy-done(%copy-start)
  %both = (f32[8,4]{1,0}, /*index=1*/bf16[8,4]{1,0:T(8,128)(2,1)}) custom-call(%copy-done, %call)
  %branch = f32[4]{0} conditional(%i, %v, %v), branch_computations={%few, %many}
  ROOT %out = (f32[8,4]{1,0}, bf16[8,4]{1,0}) tuple(%a, %b)
}
"""


def test_the_bytes_of_a_program():
    """Per array of 128 bytes: the fusion writes one, reads x and a slice of z; the function that is
    called writes one and reads one; the custom call writes one and a half and reads two."""
    program = hlo.parse(PROGRAM)
    assert hlo.bytes_moved(program) == 128 * (3 + 2 + 3.5)
    # Less the fusion's result, and what was copied to the chip, which the copy counts once.
    assert hlo.bytes_off_chip(program) == 128 * (2 + 2 + 2.5 + 1)


def test_the_all_reduces_of_a_program_are_followed_into_its_branches():
    assert hlo.all_reduces(hlo.parse(PROGRAM)) == (1, 2)


def test_the_bytes_of_a_program_for_this_machine():
    x = jax.ShapeDtypeStruct((1024, 1024), jnp.float32)
    text = jax.jit(lambda x, y: (x + 1) * y).lower(x, x).compile().as_text()
    assert hlo.bytes_moved(hlo.parse(text)) == 3 * 4 * 1024**2


def test_a_compiler_that_is_not_installed_is_named_and_nothing_written(tmp_path, monkeypatch, capsys):
    for on, compiler in COMPILERS.items():
        monkeypatch.setitem(COMPILERS, on, dataclasses.replace(compiler, module="no_such_module"))
    assert command.main(["--out", str(tmp_path)]) == {}
    printed = " ".join(capsys.readouterr().out.split())
    for chips, extra in {"H200, A100": "programs-gpu", "v5e, v6e": "programs-tpu"}.items():
        assert f'{chips}: the compiler is not installed: pip install -e ".[{extra}]"' in printed
    assert not (tmp_path / "programs.json").exists()


@pytest.fixture
def found():
    return command.load(RESULTS)


def test_the_results_are_complete(found):
    assert set(found) == set(PLATFORMS)
    for parts in found.values():
        assert {"layers", "all-reduces"} <= set(parts) <= set(command.PARTS)


def test_what_a_compiler_that_is_not_here_has_found_is_shown(found, tmp_path, monkeypatch, capsys):
    test_a_compiler_that_is_not_installed_is_named_and_nothing_written(tmp_path, monkeypatch, capsys)
    (tmp_path / "programs.json").write_text(RESULTS.read_text())
    assert command.main(["--out", str(tmp_path)]) == found
    printed = capsys.readouterr().out
    assert "BYTES, NOT TIMES" in printed and "ALL-REDUCES" in printed and "H200" in printed
    assert (tmp_path / "programs.md").read_text().strip() in printed
    png = (tmp_path / "programs.png").read_bytes()
    assert png.startswith(b"\x89PNG") and len(png) < 200_000


def test_the_process_that_fails_is_not_passed_over():
    if not COMPILERS["gpu"].installed:
        pytest.skip(command.missing("gpu"))
    with pytest.raises(RuntimeError, match="the compiler's process for nothing has failed"):
        list(command.measured("gpu", ["nothing"], ["layers"], True))


def test_tables_have_a_row_for_every_case(found):
    layers, *_ = figures.tables(found)
    assert len(layers.splitlines()) == 4 + len(CASES) * len(DTYPES)
