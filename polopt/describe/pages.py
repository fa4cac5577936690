"""The pages of `docs/` that are written by the code: pieces, columns and methods."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator

from polopt import aggregate, algorithms, reward, trajectory
from polopt.columns import name_of
from polopt.describe import table
from polopt.describe.facts import every_piece
from polopt.describe.places import COLUMNS, ROWS
from polopt.describe.recorded import COLUMNS as RECORDED
from polopt.describe.words import paragraphs, signature
from polopt.failures import FAILURES
from polopt.transform import Card, Transform

Factory = Callable[..., Transform]
Uses = dict[str, list[str]]

_HOMES = {"reward": reward, "trajectory": trajectory, "aggregate": aggregate}
_WRITTEN = "<!-- Written by `python -m polopt.describe docs`: change the cards, not this page. -->"
_INTRODUCTIONS = {
    "reward": """\
# The reward side

Pieces that turn what a trajectory earned into credit: once per rollout batch, over all rows,
without gradient. A chain moves through *reward* (one number per token), *sequence* (one per row)
and *value* (one per token).""",
    "trajectory": """\
# The trajectory side

Pieces inside the gradient: they turn the current log-probabilities into the terms of the objective.
A chain moves through *logp*, *ratio* and *policy*; a penalty is a term of its own.""",
    "aggregate": """\
# Token weights

How tokens weigh against each other: computed once, over all rows of an optimiser step, so that the
loss is a plain sum. `R` is the number of rows with tokens, `L_i` that of the tokens of row i.""",
}
_COLUMNS = """\
# Columns

What pieces read besides tokens and rewards. A column that a piece *needs* is recorded with the
batch; one that it *wants* comes from the current models, inside the gradient. A column is computed
only where a piece of the method asks for it.

| column | meaning | model | read by |
|---|---|---|---|"""
_METHODS = """\
# Methods

Every method that ships, by what it changes of REINFORCE: the pieces that it has beyond
`outcome_return` and `policy_gradient`. Numbers are shown where they are not the piece's default.
`polopt explain KEY` tells one in full, `polopt explain KEY --versus OTHER` compares two.

![the map](map.png)"""
_INVARIANT = {
    "shift": "a constant added to every reward",
    "scale": "a factor on every reward",
    "permutation": "the order within a group",
}
# Sections for people who write code, and examples.
_ASIDE = (">>>", "Args:", "Returns:", "Raises:", "Attributes:")


def pages() -> dict[str, str]:
    """`{file name: text}` of every page."""
    used = _uses()
    written = {
        f"{table.PAGES[side]}.md": [intro, *_families(side, used)]
        for side, intro in _INTRODUCTIONS.items()
    }
    written["columns.md"] = ["\n".join([_COLUMNS, *_column_rows()])]
    written["methods.md"] = [_METHODS, table.markdown()]
    return {name: "\n\n".join([_WRITTEN, *blocks]) + "\n" for name, blocks in written.items()}


def factories(side: str) -> list[Factory]:
    """The factories of the pieces of a side, files in the order of the map."""
    files = [file for line in (*COLUMNS, *ROWS[2:], ROWS[1]) for file in line.files]

    def order(factory: Factory) -> tuple[int, str, int]:
        module = factory.__module__
        file = module.rpartition(".")[2]
        at = files.index(file) if file in files else len(files)
        return at, module, inspect.getsourcelines(factory)[1]

    found = [x for x in vars(_HOMES[side]).values() if isinstance(_card(x), Card)]
    found = [x for x in found if _card(x).side == side]
    return sorted(found, key=order)


def _card(factory: object) -> Card:
    return getattr(factory, "card", None)  # type: ignore[return-value]


def _uses() -> Uses:
    """`{piece: the methods that have it}`."""
    used: Uses = {}
    for key in algorithms.__all__:
        found = every_piece(getattr(algorithms, key)())
        found += [piece.aggregate for piece in found if piece.aggregate is not None]
        for name in dict.fromkeys(piece.name for piece in found):
            used.setdefault(name, []).append(key)
    return used


def _families(side: str, used: Uses) -> Iterator[str]:
    module = ""
    for factory in factories(side):
        if factory.__module__ != module and side != "aggregate":  # the page has told of its file
            module = factory.__module__
            text = paragraphs(inspect.getdoc(importlib.import_module(module)) or "")[0]
            title, _, rest = text.rstrip(".").partition(": ")
            yield f"## {title}" + (f"\n\n{rest[0].upper()}{rest[1:]}." if rest else "")
        yield _entry(factory, used.get(factory.__name__, []))


def _entry(factory: Factory, users: list[str]) -> str:
    card = _card(factory)
    told = paragraphs(inspect.getdoc(factory) or "")[1:]
    blocks = [
        f"### {factory.__name__}",
        f"```python\n{signature(factory)}\n```",
        card.purpose,
        *(text for text in told if not text.startswith(_ASIDE)),
        *([f"    {card.formula}"] if card.formula else []),
        "\n".join(f"- **{name}**: {text}" for name, text in _facts(factory, users) if text),
    ]
    return "\n\n".join(block for block in blocks if block)


def _facts(factory: Factory, users: list[str]) -> Iterator[tuple[str, str]]:
    card = _card(factory)
    yield "source", card.source
    if card.side != "aggregate":
        yield "stage", f"{' or '.join(card.reads) or 'any'} → {card.writes or 'the same'}"
    yield "term", f"`{card.term}`" if card.term else ""
    yield "needs", ", ".join(map(_column_link, _needs(factory)))
    yield "wants", ", ".join(map(_column_link, _wants(factory)))
    yield "couples", card.couples if card.couples != "none" else ""
    yield "memory", f"moved once per {card.clock}" if card.clock else ""
    yield "smallest group", str(card.min_group) if card.min_group > 1 else ""
    yield "unchanged by", ", ".join(_INVARIANT.get(name, name) for name in card.invariant)
    yield "repairs", "; ".join(f"`{key}` ({FAILURES[key].text})" for key in card.repairs)
    yield "differs", "; ".join(card.differs)
    yield "used by", ", ".join(f"[`{key}`](methods.md#{key})" for key in users)


def _needs(factory: Factory) -> list[str]:
    """Recorded columns that a piece reads as it comes."""
    card, parameters = _card(factory), inspect.signature(factory).parameters
    chosen = [parameters[option].default for option in card.columns]
    return list(dict.fromkeys([*card.needs, *(x for x in chosen if isinstance(x, str))]))


def _wants(factory: Factory) -> list[str]:
    """Differentiable columns that a piece reads as it comes."""
    card, parameters = _card(factory), inspect.signature(factory).parameters
    chosen = [parameters[option].default for option in card.outputs]
    names = [name_of(x) for x in chosen if x is not inspect.Parameter.empty]
    return list(dict.fromkeys([*card.wants, *names]))


def _column_link(name: str) -> str:
    return f"[`{name}`](columns.md#{name})"


def _column_rows() -> Iterator[str]:
    every = [factory for side in _HOMES for factory in factories(side)]
    for name, column in RECORDED.items():
        readers = [
            f"[`{factory.__name__}`]({table.PAGES[_card(factory).side]}.md#{factory.__name__})"
            for factory in every
            if name in (*_needs(factory), *_wants(factory))
        ]
        yield (
            f'| <a id="{name}"></a>`{name}` | {column.text} | {column.model or "-"} '
            f"| {', '.join(readers) or '-'} |"
        )
