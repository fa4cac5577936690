"""A method in words: what it is made of, needs, costs and repairs, and how it differs."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from polopt import algorithms
from polopt.algorithm import Algorithm
from polopt.describe.cost import costs, smallest_group
from polopt.describe.difference import KEPT, Change, difference
from polopt.describe.facts import Facts, built, every_piece, facts, shipped
from polopt.describe.recorded import COLUMNS
from polopt.describe.words import call, columns, outline, paragraphs, wrap
from polopt.failures import FAILURES
from polopt.transform import Link

Method = Algorithm | Callable[[], Algorithm]


def explain(alg: Method, versus: Method | None = None, *, width: int = 100) -> str:
    """What a method is made of, in words for a terminal.

    Args:
      alg: an algorithm, or a factory, whose docstring is then told too.
      versus: another method to compare with. If not given, it is the method that this one is a
        change of, or the shipped method of the same name where this one is not as it ships.
      width: columns of the text.

    >>> from polopt import algorithms
    >>> print(explain(algorithms.reinforce))  # doctest: +ELLIPSIS
    reinforce  REINFORCE
    ...
    """
    made = built(alg)
    entry = facts(made)
    lines = [*_head(entry, width), *_notes(alg, made, width)]
    for title, link in (
        ("Reward side", made.reward),
        ("Trajectory side", made.trajectory),
        ("Token weights", made.aggregate),
    ):
        lines += ["", title, *_pieces(link, width)]
    lines += ["", "Needs", *columns(_needs(made, entry), width)]
    lines += ["", "Costs", *columns(costs(made), width)]
    lines += ["", "Repairs", *columns(_repairs(made, entry), width)]
    other = _other(made, entry) if versus is None else _named(built(versus))
    if other is not None:
        name, old = other
        lines += ["", f"Differs from {name}", *_difference(old, made, width)]
    if entry.verified_against:
        lines += ["", "Held against", *(f"  {line}" for line in entry.verified_against)]
    return "\n".join(lines)


def _head(entry: Facts, width: int) -> list[str]:
    changes = " and the ".join(entry.sides)
    sides = f"changes the {changes} side of REINFORCE" if changes else "is REINFORCE itself"
    if len(entry.sides) == 2:
        sides = "changes both sides of REINFORCE"
    if entry.method is None:
        return [entry.key or "a method without a name", "", *wrap(sides, width)]
    known = entry.method
    source = f"{known.paper}, {known.year}" if known.on_arxiv else known.paper
    origin = f"a change of {known.parent}; " if known.parent else ""
    return [
        f"{entry.key}  {known.title}",
        "",
        *wrap(f"{known.purpose} [{source}]", width),
        *wrap(f"{origin}{sides}", width),
    ]


def _notes(alg: Method, made: Algorithm, width: int) -> list[str]:
    """What the factory's docstring says: the shipped one's for a shipped method."""
    factory = alg
    if isinstance(alg, Algorithm):
        if alg != shipped(alg.name):
            return []
        factory = getattr(algorithms, made.name)
    text = inspect.getdoc(factory) or ""
    return [line for block in paragraphs(text) for line in ("", *wrap(block, width))]


def _pieces(link: Link, width: int) -> list[str]:
    lines = []
    for depth, heading, piece in outline(link):
        indent = "  " * (depth + 1)
        if piece is None:
            lines.append(indent + heading)
            continue
        inner, card = indent + "    ", piece.card
        lines += wrap(call(piece), width, indent, inner)
        lines += wrap(card.purpose, width, inner)
        if card.formula:
            lines += wrap(card.formula, width, inner + "  ", inner + "    ")
        if card.source:
            lines += wrap(f"from {card.source}", width, inner, inner + "  ")
        for line in card.differs:
            lines += wrap(f"differs: {line}", width, inner, inner + "  ")
    return lines


def _needs(made: Algorithm, entry: Facts) -> list[tuple[str, str]]:
    rows = [(name, _column(name, "recorded")) for name in entry.needs]
    rows += [(name, _column(name, "of the current models")) for name in entry.wants]
    if smallest_group(made) > 1:
        rows.append(("groups", f"of at least {smallest_group(made)} completions"))
    return rows or [("nothing", "beyond tokens, rewards and the current log-probabilities")]


def _column(name: str, kind: str) -> str:
    return f"{COLUMNS[name].text} ({kind})" if name in COLUMNS else kind


def _repairs(made: Algorithm, entry: Facts) -> list[tuple[str, str]]:
    by: dict[str, list[str]] = {}
    for piece in every_piece(made):
        for key in piece.card.repairs:
            by.setdefault(key, []).append(piece.name)
    rows = [(k, f"{FAILURES[k].text} ({', '.join(dict.fromkeys(by[k]))})") for k in entry.repairs]
    unknown = [(key, f"({', '.join(names)})") for key, names in by.items() if key not in FAILURES]
    return [*rows, *unknown] or [("nothing", "that its pieces name")]


def _named(alg: Algorithm) -> tuple[str, Algorithm]:
    return alg.name or "the other method", alg


def _other(made: Algorithm, entry: Facts) -> tuple[str, Algorithm] | None:
    """What to compare with where nothing was asked for."""
    as_shipped = shipped(made.name)
    if as_shipped is not None and as_shipped != made:
        return f"{made.name} as it ships", as_shipped
    parent = entry.method.parent if entry.method else None
    found = shipped(parent) if parent else None
    return None if found is None else (str(parent), found)


def _difference(old: Algorithm, new: Algorithm, width: int) -> list[str]:
    lines = []
    for section, changes in difference(old, new).items():
        if all(change.mark == KEPT for change in changes):
            lines.append(f"  {section}: the same")
        else:
            lines += [f"  {section}", *(x for change in changes for x in _change(change, width))]
    return lines


def _change(change: Change, width: int) -> list[str]:
    indent = "    " + "  " * change.depth
    return wrap(change.text, width, f"{indent}{change.mark} ", indent + "      ")
