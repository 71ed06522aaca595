"""`python -m benchmarks`: the commands, what runs share, and that the page shows what was measured."""

import importlib
import re
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from benchmarks import __main__ as command
from benchmarks.shared import processes, report, timing

FOLDER = Path(command.__file__).parent
PAGE = (FOLDER / "README.md").read_text()


def test_the_command_runs_what_is_named_with_its_devices(monkeypatch):
    calls = []
    monkeypatch.setattr(importlib.import_module("benchmarks.devices"), "main", calls.append)
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=false")
    command.main(["devices", "--seed", "1"])
    assert calls == [["--seed", "1"]]
    flags = command.os.environ["XLA_FLAGS"].split()
    assert flags[1:] == ["--xla_force_host_platform_device_count=8"]


def test_all_but_those_apart_run_where_none_is_named(monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(command.subprocess, "run", lambda arguments, check: calls.append(arguments[3:]))
    command.main(["--seed", "1"])
    assert calls == [[name, "--seed", "1"] for name in command.BENCHMARKS]
    command.main(["--list"])
    assert capsys.readouterr().out.split() == [*command.BENCHMARKS, "programs"]
    with pytest.raises(SystemExit, match=r"no benchmark 'nothing'; there are: .*numerics"):
        command.main(["nothing"])


def test_runs_are_made_in_processes_of_their_own(tmp_path, monkeypatch):
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "__init__.py").touch()
    (tmp_path / "benchmarks" / "__main__.py").write_text(
        "import json, os, sys\n"
        "figures = {'a': {'process': [os.getpid()], 'shown': [os.environ['SHOWN']]}}\n"
        "json.dump({'figures': figures}, open(f'{sys.argv[-1]}/{sys.argv[1]}.json', 'w'))\n"
    )
    monkeypatch.setattr(report, "FOLDER", tmp_path / "benchmarks")
    found = processes.repeated("one", [], 2, dict, SHOWN="yes")["a"]
    assert found["shown"] == ["yes", "yes"] and len(set(found["process"])) == 2
    assert processes.repeated("one", [], 1, lambda: {"a": {"b": 3}}) == {"a": {"b": [3]}}


def test_the_ratio_is_the_median_over_the_rounds():
    assert timing.ratio({"a": [2.0, 9.0, 6.0], "b": [1.0, 1.0, 2.0]}, "a", "b") == 3
    seconds = iter([-1.0, 2.0, 4.0])
    assert timing.rounds({"b": lambda: next(seconds)}, 2) == {"b": [2.0, 4.0]}


def test_tables():
    rows = {"x": {"a": report.span([1.0, 3.0, 2.0]), "b": report.scientific(2.3e-7)}, "y": {"b": "0"}}
    lines = report.table("title", "n", rows).splitlines()
    assert lines[2] == "| n | a                   | b      |"
    assert lines[4:] == ["| x | 2.00 (1.00 to 3.00) | 2.3e-7 |", "| y |                     | 0      |"]
    assert report.span([1.001, 1.002]) == "1.00"
    means = report.geometric_means({"a": {"x": [1.0, 4.0], "y": [1.0]}, "b": {"x": [4.0, 9.0]}})
    assert means == {"x": pytest.approx([2.0, 6.0])}


@pytest.mark.parametrize("name", command.BENCHMARKS)
def test_the_page_shows_what_the_command_wrote(name):
    (section,) = re.findall(rf"^## {name}\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)
    tables = re.findall(r"(?:^\|.*\n)+", section, re.M)
    written = "".join(path.read_text() for path in (FOLDER / "results").glob(f"**/{name}.md"))
    assert f"python -m benchmarks {name}" in section
    assert tables or "No figures stand here" in section
    assert all(table in written for table in tables)
    for path in (FOLDER / "results").glob(f"{name}.png"):
        assert f"results/{path.name}" in section and path.stat().st_size < 150_000
