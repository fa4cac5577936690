"""The policy as its own teacher: what it says of a row once it has been shown a success.

The row's prompt is replaced by one that holds a sibling's right completion; the completion itself
is the same tokens, so every one of them has a log-probability with and without hindsight.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from polopt.rollout.collect import Rollout
from polopt.rollout.measure import outcome
from polopt.trajectory.sampling import Hindsight
from polopt.types import Array, Trajectories


def demonstrations(spec: Hindsight, batch: Trajectories) -> np.ndarray:
    """i64[N]: for each row the first other row of its group that succeeded, -1 if none did."""
    good = np.asarray(batch.scored) & (outcome(batch) >= spec.above)
    group, rows = np.asarray(batch.group), np.arange(len(good))
    usable = good[None] & (group[:, None] == group[None]) & (rows[:, None] != rows[None])
    return np.where(usable.any(1), usable.argmax(1), -1)


def told(spec: Hindsight, rollout: Rollout, tokenizer: Any, max_length: int) -> Trajectories:
    """The rows of a rollout after prompts with hindsight.

    Those without a success, or without the room for it, are padding. The width is a power of two
    or `max_length`, so that few shapes are ever compiled.
    """
    batch = rollout.trajectories
    N, chosen = len(batch.length), demonstrations(spec, batch)
    start, end = np.asarray(batch.prompt_length), np.asarray(batch.length)
    rows: dict[int, tuple[list[int], slice]] = {}
    for n in np.flatnonzero(chosen >= 0):
        success = rollout.completions[chosen[n]]
        prompt = tokenizer.prompt(spec.render(rollout.examples[n].prompt, success))
        if len(prompt) + end[n] - start[n] <= max_length:
            rows[int(n)] = prompt, slice(start[n], end[n])
    longest = max((len(p) + int(s.stop - s.start) for p, s in rows.values()), default=1)
    T = min(max(batch.tokens.shape[1], 1 << (longest - 1).bit_length()), max_length)
    tokens, mask = np.zeros((N, T), np.int32), np.zeros((N, T), bool)
    length, first = np.zeros(N, np.int32), np.zeros(N, np.int32)
    for n, (prompt, own) in rows.items():
        first[n], length[n] = len(prompt), len(prompt) + own.stop - own.start
        tokens[n, : first[n]] = prompt
        tokens[n, first[n] : length[n]] = batch.tokens[n, own]
        mask[n, first[n] : length[n]] = batch.action_mask[n, own]
    nothing = np.zeros((N, T), np.float32)
    return dataclasses.replace(
        batch,
        tokens=tokens,
        length=length,
        prompt_length=first,
        action_mask=mask,
        turn=np.where(mask, 0, -1).astype(np.int32),
        version=np.zeros((N, T), np.int32),
        logp_sampler=nothing,
        log_keep=nothing,
        reward_parts={},
        columns={},
    )


def in_place(logp: Array, shown: Trajectories, batch: Trajectories) -> np.ndarray:
    """f32[N,T]: log-probabilities of `shown` at the tokens of the batch they belong to.

    A row that was shown nothing keeps what it was sampled with: it has no gap to learn from.
    """
    found = np.asarray(batch.logp_sampler) + np.asarray(batch.log_keep)
    for n in np.flatnonzero(shown.length):
        said = np.asarray(logp[n, shown.prompt_length[n] : shown.length[n]])
        found[n, batch.prompt_length[n] : batch.length[n]] = said
    return np.where(batch.action_mask, found, 0).astype(np.float32)
