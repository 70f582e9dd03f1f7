"""Every public name says what it is: modules, classes, functions and methods."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = [ROOT / "app.py", *(file for name in ("koala", "spaces") for file in (ROOT / name).rglob("*.py"))]
PLACES = sorted(file.relative_to(ROOT).as_posix() for file in FILES)
DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def undocumented(node: ast.Module | ast.ClassDef, of: str) -> Iterator[str]:
    if not ast.get_docstring(node):
        yield of
    for inner in node.body:
        if isinstance(inner, DEFINITIONS) and not inner.name.startswith("_"):
            name = f"{of}: {inner.name}"
            if isinstance(inner, ast.ClassDef):
                yield from undocumented(inner, name)
            elif not ast.get_docstring(inner):
                yield name


@pytest.mark.parametrize("place", PLACES)
def test_every_public_name_is_documented(place):
    assert not set(undocumented(ast.parse((ROOT / place).read_text()), place))
