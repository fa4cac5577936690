"""Read a method back: its sides, pieces, formulas, and what it needs. Generated from the cards."""

from __future__ import annotations

from polopt import algorithms
from polopt.algorithm import Algorithm, coupling, needs, wants
from polopt.transform import Transform, walk


def explain(alg: Algorithm) -> str:
    """What a method is made of, in words for a terminal.

    >>> print(explain(algorithms.reinforce()))  # doctest: +ELLIPSIS
    reinforce
    ...
    """
    lines = [alg.name or "a method without a name", "", "reward side"]
    lines += [line for _, piece in walk(alg.reward) for line in _piece(piece)]
    lines += ["", "trajectory side"]
    lines += [line for _, piece in walk(alg.trajectory) for line in _piece(piece)]
    lines += ["", "token weights", *_piece(alg.aggregate)]
    sampling, update = alg.sampling, alg.update
    lines += ["", "sampling and update", f"  {sampling.group_size} completions per prompt"]
    if sampling.refill:
        lines.append(f"  sampled again up to {sampling.refill.max_rounds} times until informative")
    if sampling.companion:
        lines.append(f"  one {sampling.companion} completion per prompt besides")
    lines.append(f"  {update.epochs} epochs of {update.minibatches} optimiser steps per rollout")
    lines += ["", f"needs    {', '.join(needs(alg)) or 'nothing recorded'}"]
    if wants(alg):
        lines.append(f"reads    {', '.join(wants(alg))} of the current models")
    lines.append(f"couples  {coupling(alg)}")
    repaired = sorted(
        {r for side in (alg.reward, alg.trajectory) for _, t in walk(side) for r in t.card.repairs}
    )
    lines.append(f"repairs  {', '.join(repaired) or 'nothing'}")
    return "\n".join(lines)


def _piece(piece: Transform) -> list[str]:
    card = piece.card
    lines = [f"  {piece!r}", f"      {card.purpose}"]
    lines += [f"      {card.formula}    [{card.source}]"] if card.formula else []
    return lines + [f"      differs: {line}" for line in card.differs]


def method_map() -> dict[str, dict[str, tuple[str, ...]]]:
    """{method: {side: names of its pieces}} of every method that ships."""
    made = {key: getattr(algorithms, key)() for key in algorithms.__all__}
    return {
        key: {
            "reward": tuple(piece.name for _, piece in walk(alg.reward)),
            "trajectory": tuple(piece.name for _, piece in walk(alg.trajectory)),
        }
        for key, alg in made.items()
    }
