"""What a method costs beyond sampling, one forward and one backward pass: read from its needs."""

from __future__ import annotations

from polopt.algorithm import Algorithm, needs, pieces, single_step, wants
from polopt.columns import name_of
from polopt.describe.facts import models
from polopt.describe.recorded import COLUMNS
from polopt.describe.words import shown
from polopt.trajectory.sampling import Sampling

_REFERENCE = {
    "frozen": "the policy as it was before training",
    "previous": "the policy as it was at the start of the rollout",
    "ema": "a moving average of the policy",
}


def costs(alg: Algorithm) -> list[tuple[str, str]]:
    """`(what, its cost)` of a method, sampling first."""
    return [*_sampling(alg.sampling), *_models(alg), *_passes(alg), *_memory(alg)]


def _sampling(sampling: Sampling) -> list[tuple[str, str]]:
    size = sampling.group_size
    rows = [("completions", f"{size} of each prompt" if size > 1 else "one of each prompt")]
    if sampling.refill:
        rows.append(
            (
                "refill",
                f"up to {sampling.refill.max_rounds} rounds of sampling, until enough groups pass "
                f"{shown(sampling.refill.by)}; then {_SHORT[sampling.refill.short]}",
            )
        )
    if sampling.keep:
        times = 1 / sampling.keep.fraction
        rows.append(
            (
                "keep",
                f"{times:g} times the completions are drawn; the groups that rank highest by "
                f"{shown(sampling.keep.by)} are trained on",
            )
        )
    if sampling.companion:
        rows.append(("companion", _companion(sampling)))
    if sampling.prioritise:
        rows.append(("prompts", f"drawn by {shown(sampling.prioritise.by)}: two numbers a prompt"))
    if sampling.mixture:
        part = [
            f"writes {share:.0%} of the prompts' completions alone"
            for share in [sampling.mixture.share]
            if share
        ]
        part += [
            f"weighs {a:g} in every token's distribution: one more forward pass a token"
            for a in [sampling.mixture.alpha]
            if a
        ]
        rows.append(("mixture", f"the {sampling.mixture.policy} {' and '.join(part)}"))
    return rows


_SHORT = {"train": "trains on what there is", "error": "stops with an error"}


def _companion(sampling: Sampling) -> str:
    companion = sampling.companion
    assert companion is not None
    kind = "greedy completion" if companion.greedy else "completion"
    many = f"{companion.samples} more {kind}{'s' * (companion.samples > 1)}"
    whom = "" if companion.policy == "policy" else f" of the {companion.policy}"
    once = ", once a prompt and remembered" if companion.cache else ", every rollout"
    return f"{many}{whom} for each prompt{once}; scored, not trained on"


def _models(alg: Algorithm) -> list[tuple[str, str]]:
    recorded = {COLUMNS[name].model for name in needs(alg) if name in COLUMNS}
    text = {
        "reference": f"{_REFERENCE[alg.update.reference]}: a second set of weights",
        "critic": "a second model in memory, trained: forward and backward in every update",
        "teacher": "another model in memory",
        "prm": "a second model in memory, trained: forward and backward in every update",
        "log_z": "a small head, trained beside the policy",
    }
    inside = {m for want in wants(alg) for m in getattr(want, "models", ())}
    rows = []
    for model in models(alg):
        line = text[model]
        if model in recorded and model != "log_z":
            line += "; one forward pass over each rollout"
        if model in inside:
            line += "; one forward pass in every update"
        rows.append((model, line))
    return rows


def _passes(alg: Algorithm) -> list[tuple[str, str]]:
    rows = []
    scored = ["logp_old"] if _scores_old(alg) else []
    scored += [name for name in needs(alg) if name == "sum_prob_sq"]
    if scored:
        line = "one more forward pass of the policy over each rollout"
        rows.append((", ".join(scored), line))
    if alg.update.teacher is not None:
        whom = "the policy" if alg.update.teacher.policy == "policy" else "the reference"
        line = f"{whom} reads each row once more, after a completion that succeeded"
        rows.append(("hindsight", f"{line}: one longer forward pass over each rollout"))
    steps = alg.update.epochs * alg.update.minibatches
    if steps > 1:
        rows.append(
            (
                "update",
                f"{_count(alg.update.epochs, 'pass', 'passes')} over each rollout, "
                f"{alg.update.minibatches} optimiser steps each",
            )
        )
    widest = [piece.name for _, piece in pieces(alg) if piece.card.couples in ("group", "batch")]
    if widest:
        rows.append(
            (
                "cotangent",
                f"{', '.join(dict.fromkeys(widest))} reads several rows at once: "
                "where a step is split, one more forward pass of its rows, none on the first "
                "step of a rollout",
            )
        )
    if "entropy" in [name_of(want) for want in wants(alg)]:
        rows.append(("entropy", "computed inside the head, no pass of its own"))
    return rows


def _scores_old(alg: Algorithm) -> bool:
    """Whether `logp_old` must be computed: on a single step the loss has it already."""
    if "logp_old" not in needs(alg):
        return False
    early = set(needs(alg, "reward"))
    early |= {n for _, piece in pieces(alg) if piece.hooks.before for n in piece.needs}
    return not single_step(alg) or "logp_old" in early


def _memory(alg: Algorithm) -> list[tuple[str, str]]:
    when = {"rollout": "moved once a rollout", "update": "moved once an optimiser step"}
    return [
        ("memory", f"{piece.name} keeps numbers in the train state, {when[piece.card.clock]}")
        for _, piece in pieces(alg)
        if piece.card.clock
    ]


def _count(number: int, one: str, many: str) -> str:
    return f"one {one}" if number == 1 else f"{number} {many}"


def smallest_group(alg: Algorithm) -> int:
    """The smallest group in which every piece gives credit."""
    return max(piece.card.min_group for _, piece in pieces(alg))
