"""What the documentation shows runs, and what it links to, tests and lists is there."""

import doctest
import importlib
import pkgutil
import re
import tomllib
from pathlib import Path

import pytest

import jbn

ROOT = Path(jbn.__file__).parent.parent
MODULES = ["jbn", *(m.name for m in pkgutil.walk_packages(jbn.__path__, "jbn."))]
PUBLIC = [name for name, value in vars(jbn).items() if callable(value) and not name.startswith("_")]


def blocks(path: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S)


README = blocks(ROOT / "README.md")


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name, standard_promotion):
    result = doctest.testmod(importlib.import_module(name), verbose=False)
    assert result.failed == 0


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_function_has_a_runnable_example(name):
    value = getattr(jbn, name)
    if isinstance(value, type) and name not in ("linen", "nnx"):
        return
    assert doctest.DocTestFinder(recurse=False).find(value)[0].examples, name


@pytest.mark.parametrize("index", range(len(README)))
def test_readme_block(index, standard_promotion, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(README[index], f"README.md block {index}", "exec"), {"__name__": "readme"})


def test_readme_shows_every_style():
    text = "\n".join(README)
    for shown in ("jbn.batch_norm(", "jbn.linen.BatchNorm(", "jbn.nnx.BatchNorm("):
        assert shown in text


def test_the_first_doctest_is_the_worked_example():
    example = doctest.DocTestFinder().find(jbn.batch_norm, globs={})[0].examples
    assert "[1.], [2.], [3.], [4.], [5.]" in example[1].source
    assert "[-1.41 -0.71  0.    0.71  1.41] [3.] [2.]" in example[-1].want


PAGES = ["README.md", "examples/README.md", "benchmarks/README.md", "CHANGELOG.md"]


def anchor(heading: str) -> str:
    """The part of the address behind # that a page's heading gets."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("path", PAGES)
def test_links_lead_somewhere(path):
    text = (ROOT / path).read_text(encoding="utf-8")
    for link in re.findall(r'\]\((?!https?://)(.+?)\)|\bsrc="(.+?)"', text):
        target, _, section = "".join(link).partition("#")
        file = (ROOT / path).parent / target if target else ROOT / path
        assert file.exists(), link
        if section:
            headings = re.findall(r"^#+ (.*)", file.read_text(encoding="utf-8"), re.M)
            assert section in [anchor(heading) for heading in headings], link


def test_the_table_of_features_names_a_test_in_every_row():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    _, _, *rows = re.search(r"^\|.*\| test of jbn \|\n(?:\|.*\n)+", text, re.M)[0].splitlines()
    assert len(rows) > 10
    for row in rows:
        assert "](tests/test_" in row.split("|")[-2], row
        assert row.count("|") == 9, row


def test_the_gallery_lists_every_example_and_shows_every_picture():
    text = (ROOT / "examples/README.md").read_text(encoding="utf-8")
    examples = [
        path.name
        for path in (ROOT / "examples").glob("*.py")
        if "\ndef main(" in path.read_text(encoding="utf-8")
    ]
    assert len(examples) > 10
    for name in examples:
        assert f"[{name}]({name})" in text and f"`python examples/{name}`" in text, name
    for picture in (ROOT / "examples/results").glob("*.png"):
        assert f"results/{picture.name}" in text, picture.name


def test_every_file_of_the_examples_is_named():
    text = (ROOT / "examples/README.md").read_text(encoding="utf-8")
    for path in (ROOT / "examples").glob("*.py"):
        assert path.name in text, path.name


def test_every_benchmark_is_named_in_the_changelog():
    benchmarks = importlib.import_module("benchmarks.__main__").BENCHMARKS
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in benchmarks)


def test_the_marker_of_types_is_shipped():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel == {"packages": ["jbn"]}  # the whole folder, nothing left out
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8")
    assert (ROOT / "jbn/py.typed").is_file() and "typed" not in ignored


def test_the_readme_states_the_tested_range_of_jax():
    bound = re.search(r'"jax>=([\d.]+),<([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert bound
    assert bound[1] in (ROOT / "README.md").read_text()
