"""What a method may be: a composition of at most 15 lines, without arithmetic."""

import ast
import pathlib

import pytest

from polopt import algorithms

FILES = sorted(pathlib.Path(algorithms.__file__).parent.glob("*.py"))
LONGEST = 15  # lines, docstring included


def functions(file: pathlib.Path) -> list[ast.FunctionDef]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_definitions_are_short_and_compute_nothing(file):
    for function in functions(file):
        lines = function.end_lineno - function.lineno + 1
        assert lines <= LONGEST, f"{function.name} has {lines} lines"
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        computes = isinstance(node, ast.For | ast.While | ast.comprehension)
        # `A | None` of an annotation is no arithmetic.
        computes |= isinstance(node, ast.BinOp) and not isinstance(node.op, ast.BitOr)
        assert not computes, f"{file.name}: line {getattr(node, 'lineno', '?')} computes"


def test_every_function_is_a_method_that_ships():
    assert {f.name for file in FILES for f in functions(file)} == set(algorithms.__all__)
