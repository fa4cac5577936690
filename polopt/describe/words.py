"""Pieces and their numbers as text."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Iterable
from typing import Any

from polopt.transform import Add, Chain, Link, Transform


def shown(value: Any) -> str:
    """A value as a reader would write it.

    >>> shown(0.2), shown(20480.0), shown(1e-6), shown(None)
    ('0.2', '20480', '1e-06', 'none')
    """
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        return ", ".join(map(shown, value)) or "none"
    return str(getattr(value, "__name__", None) or getattr(value, "name", None) or value)


def arguments(piece: Transform) -> dict[str, Any]:
    """The arguments of a piece in the order of its signature, its own aggregation last."""
    given = piece.arguments()
    if piece.aggregate is not None:
        given["aggregate"] = call(piece.aggregate)
    order = list(inspect.signature(piece.fn).parameters)
    return {name: given[name] for name in sorted(given, key=order.index)}


def call(piece: Transform, *, brief: bool = False) -> str:
    """A piece as it would be written: all arguments, or briefly those that are not the default.

    >>> from polopt.trajectory import clip
    >>> call(clip(0.2, 0.28)), call(clip(0.2, 0.28), brief=True)
    ('clip(low=0.2, high=0.28)', 'clip(high=0.28)')
    >>> call(clip(), brief=True)
    'clip'
    """
    given = arguments(piece)
    if brief:
        defaults = inspect.signature(piece.fn).parameters
        told = {name: x for name, x in given.items() if x != defaults[name].default}
        if not told:
            return piece.name
        if len(given) == 1:  # it needs no name
            return f"{piece.name}({shown(*told.values())})"
        given = told
    return f"{piece.name}({', '.join(f'{name}={shown(x)}' for name, x in given.items())})"


def signature(factory: Callable[..., Transform]) -> str:
    """A factory's name with its parameters and their defaults."""
    parts = []
    for p in inspect.signature(factory).parameters.values():
        default = "" if p.default is p.empty else f"={shown(p.default)}"
        parts.append(p.name + default)
    return f"{factory.__name__}({', '.join(parts)})"


def outline(link: Link, depth: int = 0) -> list[tuple[int, str, Transform | None]]:
    """`(depth, heading, piece)` of a composition in order; sums have a heading and no piece."""
    if isinstance(link, Transform):
        return [(depth, link.name, link)]
    if isinstance(link, Add):
        rows: list[tuple[int, str, Transform | None]] = []
        for i, (weight, branch) in enumerate(zip(link.weights, link.links, strict=True), 1):
            rows.append((depth, f"branch {i} of {len(link.links)}, weight {shown(weight)}", None))
            rows += outline(branch, depth + 1)
        return rows
    assert isinstance(link, Chain)
    return [row for child in link.links for row in outline(child, depth)]


def wrap(text: str, width: int, indent: str = "", hanging: str | None = None) -> list[str]:
    """`text` in lines of at most `width`; lines after the first start with `hanging`."""
    later = indent if hanging is None else hanging
    return textwrap.wrap(
        " ".join(text.split()),
        width,
        initial_indent=indent,
        subsequent_indent=later,
        break_long_words=False,
        break_on_hyphens=False,
    )


def paragraphs(text: str) -> list[str]:
    """The paragraphs of a docstring, each on one line."""
    return [" ".join(block.split()) for block in inspect.cleandoc(text).split("\n\n") if block]


def columns(rows: Iterable[tuple[str, str]], width: int, indent: str = "  ") -> list[str]:
    """Two columns of text, the second wrapped beside the first."""
    rows = list(rows)
    room = max((len(left) for left, _ in rows), default=0) + 2
    lines = []
    for left, right in rows:
        lines += wrap(right, width, indent + left.ljust(room), indent + " " * room)
    return lines
