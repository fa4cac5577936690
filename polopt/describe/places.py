"""Where a method stands on the plane: one row of the trajectory side, one column of the reward's.

A piece belongs to the file that it is written in, and a file is a family. A method stands where its
farthest piece does: lines below are in that order.
"""

from __future__ import annotations

from typing import NamedTuple

from polopt.describe.facts import Facts
from polopt.transform import Transform


class Line(NamedTuple):
    """A row or a column of the plane: a title, what it does, and the files that make it."""

    title: str
    text: str
    files: tuple[str, ...] = ()


COLUMNS: tuple[Line, ...] = (
    Line("plain return", "as it was earned"),
    Line("shaping", "penalties, filters", ("returns", "kl", "shaping", "filters")),
    Line("baseline", "against others", ("baselines", "token_baselines")),
    Line("scale", "divided by a spread", ("scaling", "objectives")),
    Line("critic", "a learned value", ("gae",)),
    Line("ranks", "best of k, by sign", ("pass_at_k", "signs", "pairs")),
    Line("memory", "past statistics", ("trackers",)),
    Line("agreement", "its own labels", ("agreement",)),
    Line("turns, trees", "inside a row", ("turns", "trees")),
    Line("per token", "process, teacher", ("process", "teacher")),
    Line("others", "", ("",)),
)
ROWS: tuple[Line, ...] = (
    Line("score function", "A · log π"),
    Line("terms beside it", "critic, entropy, likelihood", ("values", "penalties", "likelihood")),
    Line("clip", "a bound on each token's ratio", ("clipping",)),
    Line("ratios", "of sequences and turns, caps", ("ratios",)),
    Line("weights and gates", "detached or smooth, no edge", ("weights", "gates")),
    Line("masks", "tokens or rows left out", ("masks",)),
    Line("corrections", "for sampler against trainer", ("corrections",)),
    Line("regression", "fitted to the reward", ("regression",)),
    Line("preference", "pairs told apart", ("preference",)),
    Line("distillation", "divergence to a teacher", ("distillation",)),
    Line("others", "", ("",)),
)


def place(entry: Facts) -> tuple[int, int]:
    """`(row, column)` of a method in `ROWS` and `COLUMNS`."""
    column = max((_line(COLUMNS, piece) for piece in entry.changed["reward"]), default=0)
    return max(map(_row, entry.changed["trajectory"]), default=0), column


def _row(piece: Transform) -> int:
    """The row of a piece. Every ratio is per token unless another one is asked for."""
    if piece.name == "token_ratio":
        return 0
    row = _line(ROWS, piece)
    # A penalty that is taken from the policy's own term holds tokens back, as a mask does.
    own = piece.card.term not in (None, "policy")
    return row if own or ROWS[row].title != "terms beside it" else _titled("masks")


def _titled(title: str) -> int:
    return [line.title for line in ROWS].index(title)


def _line(lines: tuple[Line, ...], piece: Transform) -> int:
    package, _, file = piece.fn.__module__.rpartition(".")
    known = file if package in ("polopt.reward", "polopt.trajectory") else ""
    found = [i for i, line in enumerate(lines) if known in line.files]
    return found[0] if found else len(lines) - 1
