"""The rules of the house: where arithmetic and Flax may stand, how large a file is, what tests it."""

import ast
from pathlib import Path

import pytest

import jbn

PACKAGE = Path(jbn.__file__).parent
TESTS = Path(__file__).parent
WRAPPERS = (PACKAGE / "linen.py", PACKAGE / "nnx.py")
FILES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
MODULES = {name: path for name, path in FILES.items() if path.name != "__init__.py"}
ARITHMETIC = (
    ast.Add,
    ast.Sub,
    ast.Mult,
    ast.Div,
    ast.FloorDiv,
    ast.Mod,
    ast.Pow,
    ast.MatMult,
    ast.USub,
)


def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def arithmetic(tree):
    """Line numbers of the arithmetic operators; `-1`, a literal, is none, nor is the `|` of a union."""
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, (ast.BinOp, ast.AugAssign, ast.UnaryOp))
        and isinstance(node.op, ARITHMETIC)
        and not (isinstance(node, ast.UnaryOp) and isinstance(node.operand, ast.Constant))
    ]


def imported(tree):
    """The top-level packages that a module imports."""
    nodes = list(ast.walk(tree))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) if node.module]
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("path", WRAPPERS, ids=lambda path: path.name)
def test_the_wrappers_hold_no_arithmetic(path):
    assert arithmetic(parse(path)) == []


@pytest.mark.parametrize("source", ["y = x - mean", "y -= mean", "y = -x", "y = x ** 2", "y = x @ w"])
def test_arithmetic_would_be_found(source):
    assert arithmetic(ast.parse(source)) == [1]


@pytest.mark.parametrize("name", FILES)
def test_only_the_wrappers_and_tools_import_flax(name):
    allowed = FILES[name] in WRAPPERS or name.startswith("tools/")
    assert allowed or "flax" not in imported(parse(FILES[name]))


@pytest.mark.parametrize("source", ["import flax.linen as nn", "def f():\n    from flax import nnx"])
def test_an_import_of_flax_would_be_found(source):
    assert imported(ast.parse(source)) == {"flax"}


@pytest.mark.parametrize("name", MODULES)
def test_every_module_has_a_test_file_of_its_name(name):
    if name == "_typing.py":
        pytest.skip("types alone")
    assert (TESTS / f"test_{MODULES[name].stem.strip('_')}.py").is_file()


@pytest.mark.parametrize("name", FILES)
def test_no_file_is_long(name):
    assert len(FILES[name].read_text(encoding="utf-8").splitlines()) <= 300


def test_the_public_module_holds_re_exports_only():
    docstring, *rest = parse(PACKAGE / "__init__.py").body
    assert isinstance(docstring, ast.Expr)
    for node in rest:
        assert isinstance(node, ast.ImportFrom) and node.module.startswith("jbn")
        assert [alias.asname for alias in node.names] == [alias.name for alias in node.names]
