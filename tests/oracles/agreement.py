"""Rewards from the agreement of a group's own answers; conventions as in `methods.py`.

The recorded reward is replaced. An answer of -1 is none: it neither votes nor agrees with another.
Rows without a score are in no statistic here either.
"""

import math

import numpy as np

from . import aggregate, methods, pieces
from .batch import Batch
from .methods import Oracle


def majority_answer(batch: Batch, group: int) -> int:
    """The answer most scored members gave, -1 if none gave any; of several, the first in row order.

    That is what the authors' counter returns; one answer has to win, or a tie would reward every
    row of the group alike.
    """
    votes = [int(batch.answer[j]) for j in batch.members(group) if batch.answer[j] >= 0]
    return max(votes, key=votes.count) if votes else -1


def majority_reward(batch: Batch) -> np.ndarray:
    """`1[answer = majority]` `[N]` (TTRL, 2504.16084)."""
    out = np.zeros(len(batch.group))
    for n in range(len(out)):
        if batch.scored[n] and batch.answer[n] >= 0:
            out[n] = float(batch.answer[n] == majority_answer(batch, batch.group[n]))
    return out


def cluster_probability(batch: Batch) -> np.ndarray:
    """`|rows with my answer| / G` `[N]`, G the scored members; 0 without an answer (EMPO).

    0 also where all answers of the group differ, as in the authors' code for mathematics: there a
    group is rewarded only below an entropy of `log G`.
    """
    out = np.zeros(len(batch.group))
    for n in range(len(out)):
        members = batch.members(batch.group[n])
        clusters = [sum(batch.answer[i] == batch.answer[j] >= 0 for i in members) for j in members]
        if batch.scored[n] and batch.answer[n] >= 0 and max(clusters) > 1:
            alike = [j for j in members if batch.answer[j] == batch.answer[n]]
            out[n] = len(alike) / len(members)
    return out


def semantic_entropy(batch: Batch, group: int) -> float:
    """`-sum_c p_c log p_c` over the clusters of answers; each missing answer is one by itself."""
    members = batch.members(group)
    total = 0.0
    for j in members:  # a cluster of k members appears k times, each with -log(k / G) / G
        mine = batch.answer[j]
        size = 1 if mine < 0 else len([i for i in members if batch.answer[i] == mine])
        total -= math.log(size / len(members)) / len(members)
    return total


def ttrl(batch: Batch, **base) -> Oracle:
    """GRPO on the majority vote (2504.16084); `base` as in `_grpo`."""
    return _grpo(batch, majority_reward(batch), batch.mask, **base)


def empo(batch: Batch, *, window: tuple[float, float] | None = None, **base) -> Oracle:
    """GRPO on cluster probabilities (2504.05812); `base` as in `_grpo`.

    `window` keeps the groups whose semantic entropy lies strictly inside it; the others leave
    numerator and denominator.
    """
    keep = batch.mask.copy()
    for n in range(len(keep)):
        if window is not None and batch.members(batch.group[n]):
            entropy = semantic_entropy(batch, batch.group[n])
            keep[n] &= window[0] < entropy < window[1]
    return _grpo(batch, cluster_probability(batch), keep, **base)


def _grpo(
    batch: Batch,
    reward: np.ndarray,
    keep: np.ndarray,
    *,
    clip: tuple[float, float] = (0.2, 0.2),
    beta: float = 0.0,
    ddof: int = 1,
    eps: float = 1e-6,
    step_of: np.ndarray | None = None,
) -> Oracle:
    """`methods.grpo` with the row rewards `reward` on the tokens `keep`."""
    sequence = pieces.group_normalised(batch, reward, ddof=ddof, eps=eps)
    credit = np.where(keep, pieces.on_tokens(batch, sequence), 0.0)
    weight = aggregate.sequence_mean(keep, step_of=step_of)
    policy = methods._clip_loss(batch, credit, weight, clip)

    def loss(logp, value=None, entropy=None, *, detached_logp=None):
        def penalty(n, t):
            return beta * pieces.k3(logp[n, t] - batch.logp_ref[n, t])

        return policy(logp) + methods._weighted_sum(weight, penalty)

    return Oracle(credit=credit, loss=loss, weight=weight)
