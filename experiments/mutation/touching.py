"""Which tests touch a function: its own, and those of the methods that are made of its pieces."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mutants import Mutant, files, functions, is_piece

OWN = (
    "tests/reward/*.py",
    "tests/trajectory/*.py",
    "tests/test_numerics.py",
    "tests/test_aggregate.py",
    "tests/algorithms/*.py",
    "tests/rollout/test_pool.py",
)
MOST_OWN, MOST_ROWS = 14, 3
Function = tuple[str, str]  # file, name


def compositions() -> dict[str, dict[str, list[str]]]:
    """{"rows", "laws"}: the names of all pieces and functions that each method is made of."""
    from laws.pairs import PAIRS
    from laws.table import FACTORIES

    from polopt.algorithm import Algorithm, pieces

    def names(alg: Algorithm) -> list[str]:
        out = [alg.aggregate.name]
        for _, transform in pieces(alg):
            out.append(transform.name)
            out += [] if transform.aggregate is None else [transform.aggregate.name]
            out += [x.__name__ for _, x in transform.options if hasattr(x, "__name__")]
        return out

    return {
        "rows": {key: names(alg) for key, (alg, _) in PAIRS.items()},
        "laws": {key: names(make()) for key, make in FACTORIES.items()},
    }


class Tests:
    """The tests of a tree, and who calls whom in its package."""

    def __init__(self, folder: Path, in_fork: Callable[[Callable[[], Any]], Any]) -> None:
        self.callers = _callers(folder / "polopt")
        self.piece_names = {
            (file, f.name)
            for file in files(folder / "polopt")
            for f in functions(ast.parse((folder / "polopt" / file).read_bytes()))
            if is_piece(f)
        }
        found = in_fork(compositions)
        assert found is not None, f"the tables of methods cannot be read; see {folder}/log.txt"
        self.rows, self.laws = found["rows"], found["laws"]
        self.own = _own_tests(folder)

    def near(self, file: str, function: str) -> list[list[Function]]:
        """The function, then what calls it, then what calls that, and so on."""
        levels, seen = [[(file, function)]], {(file, function)}
        while levels[-1]:
            above = sorted({c for f in levels[-1] for c in self.callers[f]} - seen)
            seen.update(above)
            levels.append(above)
        return levels[:-1]

    def pieces(self, mutant: Mutant) -> list[str]:
        """The piece that a mutant is in, or the nearest ones that are made of it."""
        for level in self.near(mutant.file, mutant.function):
            found = sorted(name for file, name in level if (file, name) in self.piece_names)
            if found:
                return found
        return []

    def of(self, file: str, function: str) -> list[str]:
        """Node ids, the most specific first: own tests, oracle rows, relations, laws of a method.

        The relations of all methods, and laws, take longer than a mutant has.
        """
        levels = [[name for _, name in level] for level in self.near(file, function)]
        touched = (dict.fromkeys(x for name in level for x in self.own[name]) for level in levels)
        own = list(next(filter(None, touched), ()))
        wide = [x for x in own if x.startswith("tests/algorithms/")]
        quick = [x for x in own if "laws" not in x and x not in wide][:MOST_OWN]
        slow = [x for x in own if "laws" in x][:1]
        rows = [
            f"tests/laws/test_oracles.py::test_the_method_is_its_oracle[{key}]"
            for key in _made_of(self.rows, levels)[:MOST_ROWS]
        ]
        laws = [
            f"tests/laws/test_conformance.py::test_the_method_keeps_the_laws[{key}]"
            for key in _made_of(self.laws, levels)[:1]
        ]
        return [*quick, *rows, *wide, *slow, *laws]


def _made_of(table: dict[str, list[str]], levels: list[list[str]]) -> list[str]:
    """Keys of methods that hold a name of the nearest level, the smallest methods first."""
    for level in levels:
        keys = [key for key, names in table.items() if set(names) & set(level)]
        if keys:
            return sorted(keys, key=lambda key: (len(table[key]), key))
    return []


def _callers(package: Path) -> dict[Function, set[Function]]:
    """For each function those that name it, hooks in decorators included."""
    trees = {file: ast.parse((package / file).read_bytes()) for file in files(package)}
    where = {file: {f.name: file for f in functions(tree)} for file, tree in trees.items()}
    callers: dict[Function, set[Function]] = defaultdict(set)
    for file, tree in trees.items():
        known = {**_imported(tree, where), **{n: (file, n) for n in where[file]}}
        for function in functions(tree):
            for node in ast.walk(function):
                name = getattr(node, "id", None) or getattr(node, "attr", None)
                if name in known and known[name] != (file, function.name):
                    callers[known[name]].add((file, function.name))
        for node in tree.body:  # methods are reached by way of their class
            for method in node.body if isinstance(node, ast.ClassDef) else []:
                if isinstance(method, ast.FunctionDef):
                    callers[file, method.name].add((file, node.name))
    return callers


def _imported(tree: ast.Module, where: dict[str, dict[str, str]]) -> dict[str, Function]:
    """Local name -> function, for what a module imports of the others."""
    out: dict[str, Function] = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("polopt."):
            file = node.module.removeprefix("polopt.").replace(".", "/") + ".py"
            for alias in node.names:
                if alias.name in where.get(file, {}):
                    out[alias.asname or alias.name] = (file, alias.name)
    return out


def _own_tests(folder: Path) -> dict[str, list[str]]:
    """Name -> tests that mention it, in themselves or in a helper or a constant that they read."""
    out: dict[str, list[str]] = defaultdict(list)
    for pattern in OWN:
        for path in sorted(folder.glob(pattern)):
            if not path.name.startswith("test_"):
                continue
            tree = ast.parse(path.read_bytes())
            mentions = {name: names for x in tree.body for name, names in _defined(x)}
            for name in [x for x in mentions if x.startswith("test_")]:
                for mentioned in _closure(name, mentions):
                    out[mentioned].append(f"{path.relative_to(folder)}::{name}")
    return out


def _defined(statement: ast.stmt) -> list[tuple[str, set[str]]]:
    """Names that a statement of a module defines, with the names that it reads."""
    read = {x.id for x in ast.walk(statement) if isinstance(x, ast.Name)}
    read |= {x.attr for x in ast.walk(statement) if isinstance(x, ast.Attribute)}
    constants = [x.value for x in ast.walk(statement) if isinstance(x, ast.Constant)]
    read |= {x for x in constants if isinstance(x, str)}  # names that getattr is given
    if isinstance(statement, ast.FunctionDef):
        return [(statement.name, read)]
    if isinstance(statement, ast.Assign):
        return [(x.id, read) for x in statement.targets if isinstance(x, ast.Name)]
    return []


def _closure(name: str, mentions: dict[str, set[str]]) -> set[str]:
    seen, todo = set(), [name]
    while todo:
        for x in mentions.get(todo.pop(), ()):
            if x not in seen:
                seen.add(x)
                todo.append(x)
    return seen
