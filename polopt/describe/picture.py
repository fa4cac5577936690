"""The map as a picture: the trajectory side down, the reward side across, one label a method."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from polopt.catalogue import FAMILIES, METHODS
from polopt.describe.facts import method_map
from polopt.describe.places import COLUMNS, ROWS, Line, place
from polopt.errors import PoloptError, missing_extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# One hue a family, light enough to read black on.
_HUES = (
    "#BFD7EA", "#FFD8A8", "#B2DFB5", "#F8C4C4", "#E0C8F0", "#F6E58D",
    "#C8D5B9", "#A8E0DC", "#F5C6DE", "#D9CBB9", "#CFD3DA",
)  # fmt: skip
_INK, _FAINT, _RULE = "#1F2933", "#6B7785", "#D5DAE1"

Cells = Mapping[tuple[int, int], Sequence[str]]


class _Grid(NamedTuple):
    """A layout in pixels; y grows downwards."""

    rows: list[int]  # indices into ROWS that hold a method
    columns: list[int]
    lanes: dict[int, int]  # labels side by side in a column
    slots: dict[int, float]  # width of a label in a column
    left: list[float]  # edges of the columns, one more than there are
    top: list[float]  # edges of the rows
    line: float


_WIDTH, _HEIGHT = 1920.0, 1080.0
_HEAD, _SIDE, _FOOT, _RIGHT = 168.0, 236.0, 84.0, 30.0
_CHARACTER, _PADDING, _LINE = 8.05, 18.0, 30.0
_INSET = 9.0
_UNDATED: dict[str, dict[str, None]] = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}


def draw_map(out: Path) -> Path:
    """Draw every method that ships into `out` (.png, .svg or .pdf) and return it.

    Raises:
      PoloptError: another ending, or matplotlib is not installed.
    """
    if out.suffix not in (".png", ".svg", ".pdf"):
        raise PoloptError(f"{out}: the map is drawn as .png, .svg or .pdf")
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise missing_extra("matplotlib", "a picture of the map") from error
    cells: dict[tuple[int, int], list[str]] = {}
    for key, entry in method_map().items():
        cells.setdefault(place(entry), []).append(key)
    figure = Figure(figsize=(_WIDTH / 100, _HEIGHT / 100), dpi=100, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, _WIDTH), ylim=(_HEIGHT, 0))
    axes.set_axis_off()
    grid = _layout(cells)
    _titles(axes, sum(map(len, cells.values())))
    _heads(axes, grid)
    for (row, column), keys in cells.items():
        _cell(axes, grid, grid.rows.index(row), grid.columns.index(column), keys)
    _legend(axes)
    out.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": "polopt"}):  # the same map, the same file
        figure.savefig(out, metadata=_UNDATED.get(out.suffix))
    return out


def _layout(cells: Cells) -> _Grid:
    rows = sorted({row for row, _ in cells})
    columns = sorted({column for _, column in cells})
    longest = {c: max(len(key) for at in cells if at[1] == c for key in cells[at]) for c in columns}
    slots = {c: _CHARACTER * letters + _PADDING for c, letters in longest.items()}
    lanes = _widened(cells, rows, slots)
    widths = [_width(c, lanes[c], slots[c]) for c in columns]
    spare = (_WIDTH - _SIDE - _RIGHT - sum(widths)) / len(columns)
    left = list(itertools.accumulate((width + spare for width in widths), initial=_SIDE))
    tall = _HEIGHT - _HEAD - _FOOT
    lines = [max(n, 1.5) for n in _lines(cells, rows, lanes)]  # a row's head has two lines
    line = min(_LINE, (tall - 2 * _INSET * len(rows)) / sum(lines))
    extra = (tall - sum(lines) * line) / len(rows)
    top = list(itertools.accumulate((n * line + extra for n in lines), initial=_HEAD))
    return _Grid(rows, columns, lanes, slots, left, top, line)


def _widened(cells: Cells, rows: list[int], slots: dict[int, float]) -> dict[int, int]:
    """Labels side by side in each column: more where that saves the most lines, while it fits."""
    lanes = dict.fromkeys(slots, 1)
    while True:
        wider = [{**lanes, c: lanes[c] + 1} for c in lanes]
        fit = [
            one
            for one in wider
            if sum(_width(c, n, slots[c]) for c, n in one.items()) <= _WIDTH - _SIDE - _RIGHT
        ]
        best = min([lanes, *fit], key=lambda one: sum(_lines(cells, rows, one)))
        if best is lanes:
            return lanes
        lanes = best


def _lines(cells: Cells, rows: list[int], lanes: dict[int, int]) -> list[int]:
    """The lines of labels that each row takes."""
    return [max(-(-len(cells.get((r, c), ())) // n) for c, n in lanes.items()) for r in rows]


def _width(column: int, lanes: int, slot: float) -> float:
    head = max(len(COLUMNS[column].title) * 9.4, len(COLUMNS[column].text) * 7.0)
    return max(lanes * (slot + 6), head) + 2 * _INSET


def _say(axes: Axes, x: float, y: float, text: str, **style: Any) -> None:
    axes.text(x, y, text, **{"color": _INK, "va": "center", **style})


def _titles(axes: Axes, count: int) -> None:
    _say(axes, 30, 40, "LLM policy optimisation on one map", size=21, weight="bold")
    words = (
        f"{count} methods by what they change of REINFORCE,   "
        r"$\nabla J = \mathbb{E}_{\tau\sim p_\theta}[\,R(\tau)\,\nabla\log p_\theta(\tau)\,]$,"
        "   read from their compositions in polopt"
    )
    _say(axes, 30, 76, words, size=12.5, color=_FAINT)


def _heads(axes: Axes, grid: _Grid) -> None:
    right, bottom = grid.left[-1], grid.top[-1]
    faint = {"size": 11.5, "color": _FAINT, "style": "italic"}
    _say(axes, _SIDE, 110, "reward side   R(τ)  →", **faint)
    side = "trajectory side\n$p_\\theta(\\tau)$  ↓"
    _say(axes, 30, _HEAD - 30, side, linespacing=1.4, **faint)
    for i, column in enumerate(grid.columns):
        _head(axes, COLUMNS[column], (grid.left[i] + grid.left[i + 1]) / 2, 137, "center")
    for i, row in enumerate(grid.rows):
        top, below = grid.top[i], grid.top[i + 1]
        _head(axes, ROWS[row], 30, (top + below) / 2 - 9, "left")
        if i % 2 == 0:
            axes.fill_between([20, right], top, below, color="#F4F6F9", lw=0, zorder=0)
    for x in grid.left:
        axes.plot([x, x], [grid.top[0], bottom], color=_RULE, lw=0.8, zorder=1)
    for y in (grid.top[0], bottom):
        axes.plot([20, right], [y, y], color=_RULE, lw=1.2, zorder=1)


def _head(axes: Axes, line: Line, x: float, y: float, align: str) -> None:
    _say(axes, x, y, line.title, size=12, weight="bold", ha=align)
    _say(axes, x, y + 19, line.text, size=9.3, color=_FAINT, ha=align)


def _cell(axes: Axes, grid: _Grid, i: int, j: int, keys: Sequence[str]) -> None:
    """Labels in lanes, centred in their cell."""
    column = grid.columns[j]
    slot, lanes = grid.slots[column], min(grid.lanes[column], len(keys))
    lines = -(-len(keys) // lanes)
    middle_x = (grid.left[j] + grid.left[j + 1]) / 2
    middle_y = (grid.top[i] + grid.top[i + 1]) / 2
    for number, key in enumerate(keys):
        lane, line = divmod(number, lines)
        x = middle_x + (lane - (lanes - 1) / 2) * (slot + 6)
        y = middle_y + (line - (lines - 1) / 2) * grid.line
        _label(axes, key, x, y, slot, grid.line)


def _label(axes: Axes, key: str, x: float, y: float, width: float, line: float) -> None:
    hue = _HUES[FAMILIES.index(METHODS[key].family) % len(_HUES)]
    _pill(axes, x, y, width, min(line - 5, 22), hue)
    _say(axes, x, y + 0.5, key, size=9.6, family="monospace", ha="center", va="center_baseline")


def _pill(axes: Axes, x: float, y: float, width: float, height: float, hue: str) -> None:
    """A rounded box around `(x, y)`."""
    from matplotlib.patches import FancyBboxPatch

    corner = (x - width / 2, y - height / 2)
    style = "round,pad=0,rounding_size=6"
    axes.add_patch(
        FancyBboxPatch(corner, width, height, boxstyle=style, facecolor=hue, edgecolor="none")
    )


def _legend(axes: Axes) -> None:
    widths = [len(family) * 7.0 + 56 for family in FAMILIES]
    x, y = (_WIDTH - sum(widths)) / 2 + 8, _HEIGHT - 42
    for family, width, hue in zip(FAMILIES, widths, itertools.cycle(_HUES), strict=False):
        _pill(axes, x + 11, y, 22, 16, hue)
        _say(axes, x + 29, y + 0.5, family, size=10.3)
        x += width
