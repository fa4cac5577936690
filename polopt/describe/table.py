"""The map as a table: what every method changes of plain REINFORCE, side by side."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from polopt.catalogue import FAMILIES
from polopt.describe.facts import Facts, method_map
from polopt.describe.words import call
from polopt.transform import Transform

HEADINGS = ("method", "trajectory side", "reward side", "token weights", "sampling")
_WIDTHS = (21, 25, 24, 13, 9)  # with gaps of two, 100 columns
_GAP = "  "
PAGES = {"reward": "reward_side", "trajectory": "trajectory_side", "aggregate": "token_weights"}
"""Side -> the page of `docs/` on which its pieces stand."""
_NOTHING = "-"
_SAMPLING = {
    "refill": "refill",
    "keep": "keep best",
    "companion": "companion",
    "prioritise": "by need",
    "mixture": "mixture",
}


def cells(entry: Facts) -> tuple[list[str], ...]:
    """The lines of each cell of a method's row, in the order of `HEADINGS`."""
    group = entry.sampling.get("group_size", 1)
    sampling = [f"G {group}"] if group > 1 else []
    sampling += [_SAMPLING.get(name, name) for name in entry.sampling if name != "group_size"]
    year = [str(entry.method.year)] if entry.method else []
    return (
        [entry.key, *year],
        [call(piece, brief=True) for piece in entry.changed["trajectory"]],
        [call(piece, brief=True) for piece in entry.changed["reward"]],
        [call(entry.aggregate, brief=True)],
        sampling,
    )


def by_family(entries: Iterable[Facts]) -> Iterator[tuple[str, list[Facts]]]:
    """`(family, its methods)` in the order of the catalogue; methods without one come last."""
    groups: dict[str, list[Facts]] = {family: [] for family in (*FAMILIES, "Others")}
    for entry in entries:
        groups[entry.method.family if entry.method else "Others"].append(entry)
    yield from ((family, group) for family, group in groups.items() if group)


def terminal() -> str:
    """The map in 100 columns of plain text."""
    lines = [
        "What each method changes of REINFORCE (outcome_return on the reward side, policy_gradient",
        "on the trajectory side). Numbers are shown where they are not the piece's default.",
        "",
        _line(HEADINGS),
    ]
    for family, entries in by_family(method_map().values()):
        lines += ["", family, "─" * 100]
        for entry in entries:
            lines += [*_row(cells(entry)), ""]
        lines.pop()
    return "\n".join(lines)


def _row(row: tuple[list[str], ...]) -> list[str]:
    wrapped = [
        [part for text in cell or [_NOTHING] for part in _fold(text, width)]
        for cell, width in zip(row, _WIDTHS, strict=True)
    ]
    height = max(map(len, wrapped))
    return [_line([c[i] if i < len(c) else "" for c in wrapped]) for i in range(height)]


def _line(parts: Iterable[str]) -> str:
    padded = (part.ljust(width) for part, width in zip(parts, _WIDTHS, strict=True))
    return _GAP.join(padded).rstrip()


def _fold(text: str, width: int) -> list[str]:
    """Break a call after a bracket or a comma, and a name that is still too long in its middle."""
    lines = [""]
    for part in re.findall(r"[^(,\s]+(?:\(|,\s*|\s+|$)", text):
        fits = len(part.rstrip()) < width
        for piece in [part] if fits else re.findall(r"[^_]+_?", part):
            if lines[-1].strip() and len((lines[-1] + piece).rstrip()) > width:
                lines.append(" ")
            lines[-1] += piece
    return [line.rstrip() for line in lines]


def markdown() -> str:
    """The map as Markdown tables, every piece linked to its entry in the pages of pieces."""
    blocks = []
    for family, entries in by_family(method_map().values()):
        rows = [_markdown_row(entry) for entry in entries]
        head = "| method | year | trajectory side | reward side | token weights | sampling |"
        blocks.append("\n".join([f"## {family}", "", head, "|---" * 6 + "|", *rows]))
    return "\n\n".join(blocks)


def piece_link(piece: Transform) -> str:
    """A piece, briefly, linked to its entry."""
    return f"[`{call(piece, brief=True)}`]({PAGES[piece.card.side]}.md#{piece.name})"


def _markdown_row(entry: Facts) -> str:
    known = entry.method
    title = known.title if known else ""
    linked = f"[{title}]({known.link})" if known and known.link else title
    parts = [
        f'<a id="{entry.key}"></a>`{entry.key}`<br>{linked}',
        str(known.year) if known else "",
        "<br>".join(map(piece_link, entry.changed["trajectory"])) or _NOTHING,
        "<br>".join(map(piece_link, entry.changed["reward"])) or _NOTHING,
        piece_link(entry.aggregate),
        ", ".join(cells(entry)[-1]) or _NOTHING,
    ]
    return f"| {' | '.join(parts)} |"
