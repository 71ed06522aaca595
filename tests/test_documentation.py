"""What the documentation shows runs: docstrings, and every Python block of the README files."""

import doctest
import importlib
import pkgutil
import re
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


@pytest.mark.parametrize("path", ["README.md", "benchmarks/README.md", "CHANGELOG.md"])
def test_links_to_files_lead_somewhere(path):
    text = (ROOT / path).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", text):
        assert ((ROOT / path).parent / target).exists(), target


def test_the_readme_states_the_tested_range_of_jax():
    bound = re.search(r'"jax>=([\d.]+),<([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert bound
    assert bound[1] in (ROOT / "README.md").read_text()
