"""Read a method back: its sides, pieces, formulas, and what it needs. Generated from the cards."""

from __future__ import annotations

from collections.abc import Iterator

from polopt import algorithms
from polopt.algorithm import Algorithm, coupling, needs, wants
from polopt.columns import name_of
from polopt.trajectory.sampling import Sampling
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
    lines += [f"  {line}" for line in _drawing(sampling)]
    lines.append(f"  {update.epochs} epochs of {update.minibatches} optimiser steps per rollout")
    lines += ["", f"needs    {', '.join(needs(alg)) or 'nothing recorded'}"]
    if wants(alg):
        lines.append(f"reads    {', '.join(map(name_of, wants(alg)))} of the current models")
    lines.append(f"couples  {coupling(alg)}")
    repaired = sorted(
        {r for side in (alg.reward, alg.trajectory) for _, t in walk(side) for r in t.card.repairs}
    )
    lines.append(f"repairs  {', '.join(repaired) or 'nothing'}")
    return "\n".join(lines)


def _drawing(sampling: Sampling) -> Iterator[str]:
    if sampling.refill:
        yield f"sampled again up to {sampling.refill.max_rounds} times until informative"
    if sampling.keep:
        yield f"the {sampling.keep.fraction:g} of the groups that rank highest are kept"
    if sampling.prioritise:
        yield "prompts are drawn by what is known of them"
    if sampling.mixture:
        mixture = sampling.mixture
        yield (
            f"the {mixture.policy} writes {mixture.share:g} of the prompts alone and draws with a "
            f"weight of {mixture.alpha:g} in the others"
        )
    if sampling.companion:
        companion = sampling.companion
        kind = "greedy" if companion.greedy else f"{companion.samples}"
        yield f"{kind} completions of the {companion.policy} beside the batch: {companion.column}"


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
