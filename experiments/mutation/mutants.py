"""Mutants: small wrong changes to the arithmetic of the pieces, listed in a fixed order.

Every operator looks at one node of the syntax tree and answers with replacements of source bytes,
so that a mutant differs from the original in one expression and in nothing else. Docstrings, cards,
annotations, defaults, error messages and what guards them are left alone, and so is what can make
no difference by construction: a factor 1.0, the number of segments, and a stop-gradient of what is
only compared.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

FOLDERS = ("reward", "trajectory")
FILES = ("aggregate.py", "numerics.py", "divergence.py")
LIMITS = {"axis": 4, "strict": 9, "power": 4, "branches": 8}  # at most so many of the weak ones
_TINY = 1e-12  # smaller constants only keep 0/0 away
_COMPARED_ONLY = "trajectory/masks.py"  # masks are made of comparisons, which have no gradient


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One change of one file: bytes `start:end` become `new`."""

    id: str  # file:line:operator, and a number where that is not unique
    file: str  # inside the package
    function: str
    operator: str
    start: int
    end: int
    new: str

    def apply(self, source: bytes) -> bytes:
        """The mutated file."""
        return source[: self.start] + self.new.encode() + source[self.end :]

    def diff(self, source: bytes) -> list[str]:
        """The lines that leave and the lines that come."""
        old, new = (x.decode().splitlines() for x in (source, self.apply(source)))
        lines = list(difflib.unified_diff(old, new, lineterm="", n=0))[3:]
        return [line[0] + " " + line[1:].strip() for line in lines if line[0] in "+-"]


class Text:
    """A source file that knows where its nodes stand."""

    def __init__(self, source: bytes) -> None:
        self.source = source
        self.starts = [0]
        for line in source.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))

    def span(self, node: ast.expr | ast.keyword) -> tuple[int, int]:
        """The bytes of a node."""
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        start = self.starts[node.lineno - 1] + node.col_offset
        return start, self.starts[node.end_lineno - 1] + node.end_col_offset

    def of(self, node: ast.expr) -> str:
        """The source of a node, in brackets."""
        start, end = self.span(node)
        return f"({self.source[start:end].decode()})"


Edit = tuple[str, int, int, str]  # operator, start, end, new
_SWAPPED = {ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*")}
_COMPARED = {
    ast.Gt: (">", "<", ">="),
    ast.Lt: ("<", ">", "<="),
    ast.GtE: (">=", "<=", ">"),
    ast.LtE: ("<=", ">=", "<"),
}
_OPPOSITE = {"minimum": "maximum", "maximum": "minimum", "min": "max", "max": "min"}


def _between(text: Text, a: ast.expr, b: ast.expr, old: str, new: str) -> tuple[int, int, str]:
    """The operator between two operands."""
    start, end = text.span(a)[1], text.span(b)[0]
    at = start + text.source[start:end].index(old.encode())
    return at, at + len(old), new


def _is_eps(node: ast.expr) -> bool:
    named = isinstance(node, ast.Name) and node.id in ("eps", "_TINY")
    value = node.value if isinstance(node, ast.Constant) else 0
    return named or (isinstance(value, float) and _TINY < value < 1e-3)


def _arithmetic(node: ast.expr, text: Text) -> Iterator[Edit]:
    if not isinstance(node, ast.BinOp):
        return
    kind = type(node.op)
    neutral = isinstance(node.right, ast.Constant) and node.right.value == 1.0
    if kind in _SWAPPED and not (neutral and kind in (ast.Mult, ast.Div)):
        name = "sign" if kind in (ast.Add, ast.Sub) else "muldiv"
        yield name, *_between(text, node.left, node.right, *_SWAPPED[kind])
    one = isinstance(node.right, ast.Constant) and type(node.right.value) is int
    if one and kind in (ast.Add, ast.Sub):
        yield "off-by-one", *text.span(node.right), str(node.right.value + 1)
    if one and kind is ast.Pow:
        yield "power", *text.span(node.right), str(node.right.value + 1)
    if kind is ast.BitAnd:
        yield "drop-mask", *text.span(node), text.of(node.left)
        yield "drop-mask", *text.span(node), text.of(node.right)
    inner = node.right
    if kind is ast.Div and isinstance(inner, ast.BinOp) and _is_eps(inner.right):
        moved = f"({text.of(node.left)} / {text.of(inner.left)} + {text.of(inner.right)})"
        yield "eps-outside", *text.span(node), moved


def _eps(node: ast.expr, text: Text) -> Iterator[Edit]:
    if _is_eps(node):
        yield "eps-x100", *text.span(node), f"(100 * {text.of(node)})"


def _ddof(node: ast.expr, text: Text) -> Iterator[Edit]:
    if isinstance(node, ast.Name) and node.id == "ddof":
        yield "ddof", *text.span(node), "(ddof + 1)"
    given = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    if given and node.func.id == "group_std" and isinstance(node.args[-1], ast.Constant):
        yield "ddof", *text.span(node.args[-1]), str(node.args[-1].value + 1)


def _comparison(node: ast.expr, text: Text) -> Iterator[Edit]:
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _COMPARED:
        old, turned, other = _COMPARED[type(node.ops[0])]
        left, right = node.left, node.comparators[0]
        yield "direction", *_between(text, left, right, old, turned)
        yield "strict", *_between(text, left, right, old, other)


def _unary(node: ast.expr, text: Text) -> Iterator[Edit]:
    if isinstance(node, ast.UnaryOp) and not isinstance(node.operand, ast.Constant):
        if isinstance(node.op, ast.USub) and "inf" not in text.of(node.operand):
            yield "negation", *text.span(node), text.of(node.operand)
        if isinstance(node.op, ast.Invert):
            yield "negation", *text.span(node), text.of(node.operand)


def _constant_like(node: ast.expr) -> bool:
    inside = node.operand if isinstance(node, ast.UnaryOp) else node
    return isinstance(inside, ast.Constant) or (
        isinstance(inside, ast.Attribute) and inside.attr == "inf"
    )


def _call(node: ast.expr, text: Text) -> Iterator[Edit]:
    if not isinstance(node, ast.Call):
        return
    name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
    name = node.func.id if isinstance(node.func, ast.Name) else name
    whole, args = text.span(node), node.args
    if name == "where" and len(args) == 3:
        if _constant_like(args[2]):
            yield "drop-where", *whole, text.of(args[1])
        else:
            first, second = text.of(args[1]), text.of(args[2])
            yield "branches", *whole, f"jnp.where({text.of(args[0])}, {second}, {first})"
    if name in _OPPOSITE and isinstance(node.func, ast.Attribute):
        end = text.span(node.func)[1]
        yield "min-max", end - len(name), end, _OPPOSITE[name]
        if name == "maximum" and isinstance(args[1], ast.Constant) and args[1].value == 1:
            yield "guard", *text.span(args[1]), "2"
    if name == "segment_max":
        first, rest = text.of(args[0]), ", ".join(map(text.of, args[1:]))
        rest += "".join(f", {x.arg}={text.of(x.value)}" for x in node.keywords)
        yield "min-max", *whole, f"(-{ast.unparse(node.func)}(-{first}, {rest}))"
    if name in ("sg", "stop_gradient"):
        yield "stop-gradient", *whole, text.of(args[0])
    if name == "clip" and len(args) == 3:
        yield "drop-bound", *text.span(args[1]), "None"
        yield "drop-bound", *text.span(args[2]), "None"
    if name in ("cumsum", "suffix_sum"):
        yield "exclusive", *whole, f"({text.of(node)} - {text.of(args[0])})"
    if name == "rsqrt" and isinstance(args[0], ast.BinOp) and _is_eps(args[0].right):
        root, eps = text.of(args[0].left), text.of(args[0].right)
        yield "eps-outside", *whole, f"(1 / (jnp.sqrt({root}) + {eps}))"


def _keyword(node: ast.keyword, text: Text) -> Iterator[Edit]:
    if node.arg == "reverse":
        yield "reverse", *text.span(node.value), "False"
    if node.arg == "axis" and not isinstance(node.value, ast.Name):
        new = "1" if ast.unparse(node.value) == "0" else "0"
        yield "axis", *text.span(node.value), new


def _negated(function: ast.FunctionDef, text: Text) -> Iterator[Edit]:
    """For pieces that only call a helper: the other sign of what they answer."""
    for node in ast.walk(function):
        if not isinstance(node, ast.Return) or node.value is None:
            continue
        made = node.value
        values = [x.value for x in made.keywords] if isinstance(made, ast.Call) else [made]
        for value in values:
            yield "negated", *text.span(value), f"-{text.of(value)}"


OPERATORS: tuple[Callable[[ast.expr, Text], Iterator[Edit]], ...] = (
    _arithmetic,
    _eps,
    _ddof,
    _comparison,
    _unary,
    _call,
)


def _nodes(node: ast.AST) -> Iterator[ast.AST]:
    """What may be changed below a node: no annotations, defaults, raises or what guards them."""
    if isinstance(node, ast.Raise | ast.Assert | ast.arguments | ast.JoinedStr):
        return
    if isinstance(node, ast.If) and any(isinstance(x, ast.Raise) for x in node.body):
        return
    yield node
    for name, child in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list"):
            continue
        if isinstance(node, ast.keyword) and node.arg == "num_segments":
            continue
        for x in child if isinstance(child, list) else [child]:
            if isinstance(x, ast.AST):
                yield from _nodes(x)


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    """Functions of a module and methods of its classes, but not those that only check input."""
    for node in tree.body:
        for x in node.body if isinstance(node, ast.ClassDef) else [node]:
            checks = isinstance(x, ast.FunctionDef) and x.name.startswith(("__post", "_check"))
            if isinstance(x, ast.FunctionDef) and not checks:
                yield x


def files(package: Path) -> list[str]:
    """The files that hold pieces and what they are made of."""
    found = [p.relative_to(package) for folder in FOLDERS for p in (package / folder).glob("*.py")]
    return sorted(str(p) for p in [*found, *map(Path, FILES)] if p.name != "__init__.py")


def candidates(package: Path) -> list[Mutant]:
    """Every mutant of every function, in the order of the source."""
    out: list[Mutant] = []
    for file in files(package):
        source = (package / file).read_bytes()
        text, seen = Text(source), Counter[str]()
        for function in functions(ast.parse(source)):
            edits = [e for x in function.body for node in _nodes(x) for e in _edits(node, text)]
            if not edits and is_piece(function):
                edits = list(_negated(function, text))
            for operator, start, end, new in edits:
                if operator == "stop-gradient" and file == _COMPARED_ONLY:
                    continue
                line = source[:start].count(b"\n") + 1
                key = f"{file}:{line}:{operator}"
                seen[key] += 1
                key += f":{seen[key]}" if seen[key] > 1 else ""
                out.append(Mutant(key, file, function.name, operator, start, end, new))
    return out


def _edits(node: ast.AST, text: Text) -> Iterator[Edit]:
    if isinstance(node, ast.keyword):
        yield from _keyword(node, text)
    if isinstance(node, ast.expr):
        for operator in OPERATORS:
            yield from operator(node, text)


def is_piece(function: ast.FunctionDef) -> bool:
    """Whether the function is decorated as a piece."""
    called = [x.func for x in function.decorator_list if isinstance(x, ast.Call)]
    return any(isinstance(x, ast.Name) and x.id == "piece" for x in called)


def choose(package: Path, count: int) -> list[Mutant]:
    """`count` mutants: one of every piece, one of every helper, a second one of the largest.

    Of a function's mutants that of the operator used least so far is taken, by hash among equals.
    """
    pieces = {
        (file, function.name)
        for file in files(package)
        for function in functions(ast.parse((package / file).read_bytes()))
        if is_piece(function)
    }
    by_function: dict[tuple[str, str], list[Mutant]] = defaultdict(list)
    for mutant in candidates(package):
        by_function[mutant.file, mutant.function].append(mutant)
    used: Counter[str] = Counter()
    chosen: list[Mutant] = []
    large = sorted(by_function, key=lambda k: (-len(by_function[k]), k))
    for key in [*sorted(by_function, key=lambda k: (k not in pieces, _hash(":".join(k)))), *large]:
        free = [
            m
            for m in by_function[key]
            if m not in chosen and used[m.operator] < LIMITS.get(m.operator, count)
        ]
        if free and len(chosen) < count:
            chosen.append(min(free, key=lambda m: (used[m.operator], _hash(m.id))))
            used[chosen[-1].operator] += 1
    return sorted(chosen, key=lambda m: (m.file, m.start, m.id))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
