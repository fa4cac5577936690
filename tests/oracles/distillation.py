"""Learning from a teacher on the student's own samples; conventions as in `methods.py`.

A loss on divergences trains every action token: a teacher needs no score. Where the teacher's
signal is a credit, rows without a score have credit 0 as everywhere, unless `scored_only=False`.
"""

import math

import numpy as np

from . import aggregate, credit_pieces, methods, pieces, surrogate_pieces
from .batch import Batch
from .methods import Oracle

# ------------------------------------------------------------------ pieces


def kl(p: list[float], q: list[float]) -> float:
    """`sum_v p_v log(p_v / q_v)`."""
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def jsd(student: list[float], teacher: list[float], beta: float) -> float:
    """`beta KL(T || M) + (1 - beta) KL(S || M)`, `M = beta T + (1 - beta) S` (GKD, 2306.13649).

    By definition `beta = 0` is `KL(T || S)` and `beta = 1` is `KL(S || T)`; both limits are 0.
    """
    if beta == 0.0:
        return kl(teacher, student)
    if beta == 1.0:
        return kl(student, teacher)
    mixed = [beta * t + (1.0 - beta) * s for s, t in zip(student, teacher, strict=True)]
    return beta * kl(teacher, mixed) + (1.0 - beta) * kl(student, mixed)


def teacher_credit(
    batch: Batch, coefficient: float, gamma: float = 0.0, *, scored_only: bool = True
) -> np.ndarray:
    """`sum_{s >= t} gamma^k (-coefficient (l_sampler - l_teacher)_s)` `[N, T]` on actions."""
    reward = np.zeros(batch.mask.shape)
    for n in range(len(reward)):
        for t in batch.actions(n):
            reward[n, t] = -coefficient * (batch.logp_sampler[n, t] - batch.logp_teacher[n, t])
    credit = pieces.reward_to_go(batch, gamma, reward)
    return methods._scored(batch, credit) if scored_only else credit


def future_mean(batch: Batch, reward: np.ndarray, *, gamma: float, current: bool) -> np.ndarray:
    """The discounted sum of `reward` after t over the number of actions after t `[N, T]`.

    With `current` action t itself is in both; without it, the last action has 0.
    """
    out = np.zeros(reward.shape)
    for n in range(len(out)):
        actions = batch.actions(n)
        for i, t in enumerate(actions):
            later = actions[i:] if current else actions[i + 1 :]
            total = sum(gamma**k * reward[n, s] for k, s in enumerate(later))
            out[n, t] = total / len(later) if later else 0.0
    return out


def prefix_weights(batch: Batch, gap: np.ndarray, strength: float) -> np.ndarray:
    """`1 + strength (1 - sum_{s<t} |gap_s| / sum_s |gap_s|)` `[N, T]` (IW-OPD, 2606.22600)."""
    out = np.zeros(gap.shape)
    for n in range(len(out)):
        actions = batch.actions(n)
        whole = max(sum(abs(gap[n, s]) for s in actions), 1e-8)
        for i, t in enumerate(actions):
            out[n, t] = 1.0 + strength * (1.0 - sum(abs(gap[n, s]) for s in actions[:i]) / whole)
    return out


def spans(batch: Batch, n: int) -> list[list[int]]:
    """Positions of the actions of each text span of row n, in order."""
    out: dict[int, list[int]] = {}
    for t in batch.actions(n):
        if batch.span[n, t] >= 0:
            out.setdefault(int(batch.span[n, t]), []).append(t)
    return list(out.values())


def span_distance(
    batch: Batch, n: int, tokens: list[int], logp: np.ndarray, sorted_prob: np.ndarray
) -> float:
    """`sum_k |student_k prod of the later tokens' probabilities - teacher_k|` of one span."""
    first = tokens[0]
    later = math.exp(sum(logp[n, t] for t in tokens[1:]))
    teacher = batch.teacher_sorted_prob[n, first]
    return sum(abs(s * later - t) for s, t in zip(sorted_prob[n, first], teacher, strict=True))


# ------------------------------------------------------------------ methods


def gkd(batch: Batch, *, step_of: np.ndarray | None = None) -> Oracle:
    """`L = token_mean(JSD(student, teacher))`, an output `jsd_teacher` of the loss (2306.13649)."""
    weight = aggregate.token_mean(batch.mask, step_of=step_of)

    def loss(logp, value=None, entropy=None, *, detached_logp=None, jsd_teacher=None):
        return methods._weighted_sum(weight, lambda n, t: jsd_teacher[n, t])

    return Oracle(credit=np.zeros(batch.mask.shape), loss=loss, weight=weight)


def minillm(
    batch: Batch,
    *,
    gamma: float = 1.0,
    current: bool = False,
    whiten: bool = False,
    reward_scale: float = 1.0,
    clip: tuple[float, float] = (0.2, 0.2),
    scored_only: bool = True,
    step_of: np.ndarray | None = None,
) -> Oracle:
    """`L = -token_mean(min(w A, clip(w) A)) + token_mean(KL(student || teacher))` (2306.08543).

    `A` is `future_mean` of `l_teacher - l_old`, `w = pi / sampler` per token (the sampler may be a
    mixture with the teacher), the KL an output `kl_teacher` of the loss (None leaves it out). The
    authors' code has `current` and `whiten`, and divides the reward by `reward_scale` 0.5.
    """
    reward = np.zeros(batch.mask.shape)
    for n in range(len(reward)):
        for t in batch.actions(n):
            reward[n, t] = (batch.logp_teacher[n, t] - batch.logp_old[n, t]) / reward_scale
    credit = future_mean(batch, reward, gamma=gamma, current=current)
    if scored_only:
        credit = methods._scored(batch, credit)
    if whiten:
        credit = pieces.whiten_tokens(batch, credit)
    weight = aggregate.token_mean(batch.mask, step_of=step_of)

    def loss(logp, value=None, entropy=None, *, detached_logp=None, kl_teacher=None):
        def objective(n, t):
            ratio = math.exp(logp[n, t] - batch.logp_sampler[n, t])
            return pieces.clipped(ratio, credit[n, t], *clip)

        total = -methods._weighted_sum(weight, objective)
        if kl_teacher is not None:
            total += methods._weighted_sum(weight, lambda n, t: kl_teacher[n, t])
        return total

    return Oracle(credit=credit, loss=loss, weight=weight)


def opd(
    batch: Batch,
    *,
    coefficient: float = 1.0,
    gamma: float = 0.0,
    clip: tuple[float, float] = (math.inf, math.inf),
    anchor: np.ndarray | None = None,
    scored_only: bool = True,
    step_of: np.ndarray | None = None,
) -> Oracle:
    """`L = -token_mean(r A)`, `A` the `teacher_credit`, `r = pi / anchor` (default: sampler)."""
    anchor = batch.logp_sampler if anchor is None else anchor
    credit = teacher_credit(batch, coefficient, gamma, scored_only=scored_only)
    weight = aggregate.token_mean(batch.mask, step_of=step_of)

    def objective(n, t, logp, held):
        return pieces.clipped(math.exp(logp[n, t] - anchor[n, t]), credit[n, t], *clip)

    return Oracle(credit=credit, loss=surrogate_pieces.surrogate(weight, objective), weight=weight)


def iw_opd(
    batch: Batch,
    *,
    strength: float = 0.5,
    scored_only: bool = True,
    step_of: np.ndarray | None = None,
) -> Oracle:
    """`L = -token_mean(w_t a_t l_t)`, `a = l_teacher - l_sampler`, `w` as `prefix_weights`."""
    gap = teacher_credit(batch, 1.0, scored_only=scored_only)
    credit = prefix_weights(batch, gap, strength) * gap
    weight = aggregate.token_mean(batch.mask, step_of=step_of)
    return Oracle(credit=credit, loss=surrogate_pieces.weighted_logp(credit, weight), weight=weight)


def sdpo(
    batch: Batch,
    *,
    full: bool = False,
    cap: float | None = 2.0,
    distillation: float = 1.0,
    rows: np.ndarray | None = None,
    aggregation=aggregate.token_mean,
    clip: tuple[float, float] = (0.2, 0.2),
    ddof: int = 1,
    eps: float = 1e-6,
    step_of: np.ndarray | None = None,
) -> Oracle:
    """`L = (1 - w) L_grpo + w agg(sg[min(pi / pi_old, cap)] d)`, `w = distillation` (2601.20802).

    `d` is `sg[l - l_teacher] l`, or with `full` the output `jsd_teacher` of the loss; the teacher
    is the model itself, told what went wrong. `rows` bool[N] have such a teacher (default: all);
    the others are in no count of the second term. `L_grpo` has no KL.
    """
    with_teacher = batch.mask if rows is None else batch.mask & rows[:, None]
    weight = aggregation(with_teacher, step_of=step_of)
    credit = credit_pieces.normalised_credit(batch, ddof, eps)
    grpo_weight = aggregation(batch.mask, step_of=step_of)
    grpo = methods._clip_loss(batch, credit, grpo_weight, clip)

    def loss(logp, value=None, entropy=None, *, detached_logp=None, jsd_teacher=None):
        held = logp if detached_logp is None else detached_logp

        def distance(n, t):
            ratio = 1.0
            if cap is not None:
                ratio = pieces.truncated_is(held[n, t] - batch.logp_old[n, t], cap)
            if full:
                return ratio * jsd_teacher[n, t]
            return ratio * (held[n, t] - batch.logp_teacher[n, t]) * logp[n, t]

        total = distillation * methods._weighted_sum(weight, distance)
        return total if distillation == 1.0 else total + (1.0 - distillation) * grpo(logp)

    return Oracle(credit=credit, loss=loss, weight=weight)


def gold(batch: Batch, *, hybrid: float = 0.0, step_of: np.ndarray | None = None) -> Oracle:
    """`L = mean_i mean over spans of ((1 - hybrid) span_distance + hybrid jsd)` (ULD, 2402.12030).

    Outputs of the loss: `sorted_prob` `[N, T, K]` and, at a span's first token, `jsd_teacher`
    `[N, T]` on the vocabulary that both share. A row without a span counts among the rows.
    """
    weight = np.zeros(batch.mask.shape)
    for step in aggregate._steps(batch.mask, step_of):
        for n in step:
            for tokens in spans(batch, n):
                weight[n, tokens[0]] = 1.0 / len(step) / len(spans(batch, n))

    def loss(
        logp, value=None, entropy=None, *, detached_logp=None, sorted_prob=None, jsd_teacher=None
    ):
        def distance(n, t):
            tokens = next(tokens for tokens in spans(batch, n) if tokens[0] == t)
            total = (1.0 - hybrid) * span_distance(batch, n, tokens, logp, sorted_prob)
            return total + hybrid * jsd_teacher[n, t] if hybrid else total

        return methods._weighted_sum(weight, distance)

    return Oracle(credit=np.zeros(batch.mask.shape), loss=loss, weight=weight)


def grpo_opd(
    batch: Batch,
    *,
    at: str = "advantage",
    coefficient: float = 1.0,
    clip: tuple[float, float] = (0.2, 0.2),
    ddof: int = 1,
    eps: float = 1e-6,
    step_of: np.ndarray | None = None,
) -> Oracle:
    """Token-mean GRPO and OPD together, with the teacher's part (`teacher_credit`) composed `at`

    `"advantage"`: added to the group-normalised credit, token by token; `"reward"`: its sum over
    the row added to the outcome before the group is normalised; `"loss"`: `opd`, without a clip,
    added to GRPO's loss. No KL to the reference.
    """
    teacher = teacher_credit(batch, coefficient)
    outcome = pieces.outcome_return(batch)
    if at == "reward":
        outcome = outcome + teacher.sum(axis=1)
    credit = pieces.on_tokens(batch, pieces.group_normalised(batch, outcome, ddof=ddof, eps=eps))
    if at == "advantage":
        credit = credit + teacher
    weight = aggregate.token_mean(batch.mask, step_of=step_of)
    grpo = methods._clip_loss(batch, credit, weight, clip)
    distill = opd(batch, coefficient=coefficient, step_of=step_of)

    def loss(logp, value=None, entropy=None, *, detached_logp=None):
        return grpo(logp) + (distill.loss(logp) if at == "loss" else 0.0)

    return Oracle(credit=credit, loss=loss, weight=weight)
