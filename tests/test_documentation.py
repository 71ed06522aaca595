"""What the documentation shows runs, and what it links to, tests and lists is there."""

import doctest
import importlib
import inspect
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


BLOCKS = {
    f"{path} {index}": block
    for path in ("README.md", "examples/questions.md")
    for index, block in enumerate(blocks(ROOT / path))
}


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


@pytest.mark.parametrize("block", BLOCKS)
def test_block_of_a_page(block, standard_promotion, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(BLOCKS[block], block, "exec"), {"__name__": "page"})


def test_the_readme_lists_the_public_api():
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("## The public API")[2]
    names = re.findall(r"`jbn\.([\w.]+)", text.partition("\n## ")[0])
    listed = {name.partition(".")[0] for name in names}
    modules = {"tools", "linen", "nnx"}
    assert listed == set(PUBLIC) | modules | {"plain"}
    tools = set(re.findall(r"`(\w+)`", text.partition("\n## ")[0].partition("`jbn.tools`")[2]))
    suffixes = {name for name in tools if name.startswith("_")}
    tools |= {name + suffix for name in ("from", "to") for suffix in suffixes}
    assert tools > {name for name, v in vars(jbn.tools).items() if inspect.isfunction(v)}


PAGES = [
    "README.md",
    "CHANGELOG.md",
    "examples/README.md",
    "examples/questions.md",
    "benchmarks/README.md",
]


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
    _, _, *rows = re.search(r"^\| \| jbn \| Flax \| Haiku .*\n(?:\|.*\n)+", text, re.M)[0].splitlines()
    assert len(rows) > 8
    for row in rows:
        assert "](tests/test_" in row.split("|")[1], row
        assert row.count("|") == 8, row


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


def test_the_marker_of_types_is_shipped():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel == {"packages": ["jbn"]}  # the whole folder, nothing left out
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8")
    assert (ROOT / "jbn/py.typed").is_file() and "typed" not in ignored
