"""How two methods differ: kept, added, removed and changed parts, side by side."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any, NamedTuple

from polopt.algorithm import Algorithm
from polopt.describe.words import arguments, call, outline, shown
from polopt.transform import Link, Transform

KEPT, ADDED, REMOVED, CHANGED = " ", "+", "-", "~"


class Change(NamedTuple):
    """One line of a difference: a mark, how deep it lies in sums, and what."""

    mark: str
    depth: int
    text: str


def difference(old: Algorithm, new: Algorithm) -> dict[str, list[Change]]:
    """`{section: changes}` from `old` to `new`; a section that is the same has only kept lines.

    >>> from polopt import algorithms
    >>> made = difference(algorithms.grpo(), algorithms.dr_grpo())
    >>> [change.text for change in made["reward side"] if change.mark == REMOVED]
    ['group_std_scale(eps=1e-06, ddof=1)']
    """
    return {
        "reward side": _links(old.reward, new.reward),
        "trajectory side": _links(old.trajectory, new.trajectory),
        "token weights": _links(old.aggregate, new.aggregate),
        "sampling": _fields(old.sampling, new.sampling),
        "update": _fields(old.update, new.update),
    }


def _links(old: Link, new: Link) -> list[Change]:
    before, after = outline(old), outline(new)
    names = [[name for _, name, _ in rows] for rows in (before, after)]
    out: list[Change] = []
    matcher = difflib.SequenceMatcher(None, names[0], names[1], autojunk=False)
    for kind, a, b, c, d in matcher.get_opcodes():
        if kind == "equal":
            for (_, name, was), (depth, _, now) in zip(before[a:b], after[c:d], strict=True):
                out += _matched(depth, name, was, now)
            continue
        out += [Change(REMOVED, depth, _text(name, piece)) for depth, name, piece in before[a:b]]
        out += [Change(ADDED, depth, _text(name, piece)) for depth, name, piece in after[c:d]]
    return out


def _matched(depth: int, name: str, was: Transform | None, now: Transform | None) -> list[Change]:
    if was is None or now is None or was == now:
        return [Change(KEPT, depth, _text(name, now))]
    old, new = arguments(was), arguments(now)
    return [
        Change(CHANGED, depth, f"{name}.{key} {shown(old.get(key))} -> {shown(new.get(key))}")
        for key in {**old, **new}
        if old.get(key) != new.get(key)
    ]


def _text(name: str, piece: Transform | None) -> str:
    return name if piece is None else call(piece)


def _fields(old: Any, new: Any) -> list[Change]:
    out = []
    for field in dataclasses.fields(new):
        was, now = getattr(old, field.name), getattr(new, field.name)
        if was == now:
            continue
        if was is None:
            out.append(Change(ADDED, 0, f"{field.name} {setting(now)}"))
        elif now is None:
            out.append(Change(REMOVED, 0, f"{field.name} {setting(was)}"))
        else:
            out.append(Change(CHANGED, 0, f"{field.name} {setting(was)} -> {setting(now)}"))
    return out


def setting(value: Any) -> str:
    """A field of `Sampling` or `Update`: a number, or a record by what is not its default."""
    if not dataclasses.is_dataclass(value) or callable(value):
        return shown(value)
    parts = [
        f"{field.name}={setting(getattr(value, field.name))}"
        for field in dataclasses.fields(value)
        if getattr(value, field.name) != field.default
    ]
    return f"({', '.join(parts)})"
