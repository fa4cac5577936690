"""Credit by turn; conventions as in `methods.py`.

A turn is a run of tokens that the model wrote; its reward is the sum of what is earned on its
tokens. Rows without a score are in no statistic, and their turns are no step of any cluster.
"""

import math
from dataclasses import replace

import numpy as np

from . import aggregate, methods, pieces
from .batch import Batch
from .methods import Oracle

# ------------------------------------------------------------------ pieces


def turns(batch: Batch, n: int) -> list[list[int]]:
    """Positions of the actions of each turn of row n, in order."""
    out: dict[int, list[int]] = {}
    for t in batch.actions(n):
        out.setdefault(int(batch.turn[n, t]), []).append(t)
    return [out[k] for k in sorted(out)]


def turn_rewards(batch: Batch, n: int) -> list[float]:
    """What row n earns in each of its turns."""
    return [sum(batch.reward[n, t] for t in tokens) for tokens in turns(batch, n)]


def discounted(rewards: list[float], gamma: float) -> list[float]:
    """`sum_{j >= k} gamma^(j - k) r_j` for each k."""
    return [
        sum(gamma ** (j - k) * r for j, r in enumerate(rewards) if j >= k)
        for k in range(len(rewards))
    ]


def standardised(
    values: list[float], *, normalise: bool = True, ddof: int = 1, eps: float = 1e-6
) -> list[float]:
    """Each value less the mean, over `std + eps`; all 0 when fewer than two or all equal."""
    if len(values) < 2 or max(values) == min(values):
        return [0.0] * len(values)
    mean, scale = pieces._mean(values), pieces._std(values, ddof) + eps if normalise else 1.0
    return [(v - mean) / scale for v in values]


def anchor_credit(batch: Batch, gamma: float, **norm) -> np.ndarray:
    """GiGPO's step credit `[N, T]`: returns from each turn among turns taken in the same state.

    A step is a turn of a scored row, counted once; a turn without an anchor is alone.
    """
    clusters: dict[tuple[int, int], list[tuple[float, int, list[int]]]] = {}
    for n in np.flatnonzero(batch.scored):
        returns = discounted(turn_rewards(batch, n), gamma)
        for tokens, value in zip(turns(batch, n), returns, strict=True):
            anchor = int(batch.anchor[n, tokens[0]])
            if anchor >= 0:
                step = (value, int(n), tokens)
                clusters.setdefault((int(batch.group[n]), anchor), []).append(step)
    out = np.zeros(batch.mask.shape)
    for steps in clusters.values():
        credits = standardised([value for value, _, _ in steps], **norm)
        for credit, (_, n, tokens) in zip(credits, steps, strict=True):
            out[n, tokens] = credit
    return out


def last_turn_outcome(batch: Batch) -> np.ndarray:
    """What each row earns in its last turn `[N]`; an empty row what its prompt was given."""
    out = pieces.outcome_return(batch)
    for n in range(len(out)):
        if batch.actions(n):
            out[n] = turn_rewards(batch, n)[-1]
    return out


def turn_credit(batch: Batch, **norm) -> np.ndarray:
    """MT-GRPO's turn part `[N, T]`: turn k's reward among the group's rows that go on after it."""
    out = np.zeros(batch.mask.shape)
    for g in sorted({int(g) for g in batch.group if g >= 0}):
        for k in range(batch.mask.shape[1]):
            rows = [n for n in batch.members(g) if len(turns(batch, n)) > k + 1]
            credits = standardised([turn_rewards(batch, n)[k] for n in rows], **norm)
            for n, credit in zip(rows, credits, strict=True):
                out[n, turns(batch, n)[k]] = credit
    return out


def turn_gae(batch: Batch, *, gamma: float, lam: float) -> tuple[np.ndarray, np.ndarray]:
    """Turn-level advantages on all tokens of a turn, and targets on its first token `[N, T]`.

    `V_k` is the critic before turn k's first token; `bootstrap_value` follows the last turn.
    """
    advantage, returns = np.zeros(batch.mask.shape), np.zeros(batch.mask.shape)
    for n in np.flatnonzero(batch.scored):
        next_value, next_advantage = batch.bootstrap_value[n], 0.0
        rewards = turn_rewards(batch, n)
        for k, tokens in reversed(list(enumerate(turns(batch, n)))):
            value = batch.value[n, tokens[0]]
            delta = rewards[k] + gamma * next_value - value
            next_advantage = delta + gamma * lam * next_advantage
            advantage[n, tokens] = next_advantage
            returns[n, tokens[0]] = next_advantage + value
            next_value = value
    return advantage, returns


def two_level_gae(
    batch: Batch, *, gamma: float, lam: float, turn_gamma: float
) -> tuple[np.ndarray, np.ndarray]:
    """RAGEN's two passes (2504.20073): advantages and targets `[N, T]` on actions of scored rows.

    Between turns, `delta_k = R_k + turn_gamma V_{k+1} - V_k` with `V_k` the critic at turn k's last
    token, and `A_k = delta_k + turn_gamma lam A_{k+1}`. Inside a turn, GAE with `gamma` and `lam`
    of a reward `A_k + V_k` on its last token, beyond which nothing follows.
    """
    advantage, returns = np.zeros(batch.mask.shape), np.zeros(batch.mask.shape)
    for n in np.flatnonzero(batch.scored):
        next_value, next_advantage = batch.bootstrap_value[n], 0.0
        rewards = turn_rewards(batch, n)
        for k, tokens in reversed(list(enumerate(turns(batch, n)))):
            last = batch.value[n, tokens[-1]]
            delta = rewards[k] + turn_gamma * next_value - last
            next_advantage = delta + turn_gamma * lam * next_advantage
            next_value = last
            inner_value, inner_advantage, reward = 0.0, 0.0, next_advantage + last
            for t in reversed(tokens):
                inner = reward + gamma * inner_value - batch.value[n, t]
                inner_advantage = inner + gamma * lam * inner_advantage
                advantage[n, t] = inner_advantage
                returns[n, t] = inner_advantage + batch.value[n, t]
                inner_value, reward = batch.value[n, t], 0.0
    return advantage, returns


def most_uncertain(batch: Batch, fraction: float) -> np.ndarray:
    """bool[N]: rows of the `floor(fraction P)` groups (at least one) of largest reward deviation.

    P counts groups, padding left out; of equal deviations the group that comes first in row order
    is kept.
    """
    deviation = pieces.group_std(batch, pieces.outcome_return(batch))
    first: dict[int, int] = {}
    for n, g in enumerate(batch.group):
        if g >= 0:
            first.setdefault(int(g), n)
    ranked = sorted(first, key=lambda g: (-deviation[first[g]], first[g]))
    kept = ranked[: max(1, math.floor(fraction * len(ranked)))]
    return np.array([g in kept for g in batch.group])


# ------------------------------------------------------------------ methods


def gigpo(
    batch: Batch,
    *,
    gamma: float = 0.95,
    step_weight: float = 1.0,
    normalise: bool = True,
    clip: tuple[float, float] = (0.2, 0.2),
    beta: float = 0.01,
    ddof: int = 1,
    eps: float = 1e-6,
    step_of: np.ndarray | None = None,
) -> Oracle:
    """Token-mean PPO clip with k3 on episode credit plus `step_weight` step credit (2505.10978).

    Both parts are centred, and with `normalise` divided by their deviation.
    """
    outcome = pieces.outcome_return(batch)
    episode = pieces.group_mean_baseline(batch, outcome)
    if normalise:
        episode = pieces.group_normalised(batch, outcome, ddof=ddof, eps=eps)
    step = anchor_credit(batch, gamma, normalise=normalise, ddof=ddof, eps=eps)
    credit = pieces.on_tokens(batch, episode) + step_weight * step
    return _clip_and_k3(batch, credit, clip, beta, step_of)


def mt_grpo(
    batch: Batch,
    *,
    coefficient: float = 1.0,
    clip: tuple[float, float] = (0.2, 0.2),
    beta: float = 0.0,
    ddof: int = 1,
    eps: float = 1e-4,
    step_of: np.ndarray | None = None,
) -> Oracle:
    """Token-mean PPO clip on `A_O + coefficient A_T,k`, in the last turn `A_O` (2505.11821).

    `A_O` is GRPO's credit of what the last turn earned.
    """
    outcome = pieces.group_normalised(batch, last_turn_outcome(batch), ddof=ddof, eps=eps)
    turn = turn_credit(batch, ddof=ddof, eps=eps)
    credit = pieces.on_tokens(batch, outcome) + coefficient * turn
    return _clip_and_k3(batch, credit, clip, beta, step_of)


def turn_ppo(
    batch: Batch,
    *,
    gamma: float = 0.99,
    lam: float = 0.9,
    clip: tuple[float, float] = (0.2, 0.2),
    value_clip: float | None = 0.2,
    value_coefficient: float = 0.1,
    step_of: np.ndarray | None = None,
) -> Oracle:
    """`L = -mean over turns of min(s_k A_k, clip(s_k) A_k) + c_v mean over turns of value error`.

    `s_k` is the geometric mean ratio of the turn's tokens (2512.17008); the critic is trained at
    turns' first tokens only.
    """
    credit, returns = turn_gae(batch, gamma=gamma, lam=lam)
    weight = aggregate.turn_mean(batch.mask, batch.turn, step_of=step_of)
    first = np.zeros(batch.mask.shape, bool)
    for n in range(len(first)):
        for tokens in turns(batch, n):
            first[n, tokens[0]] = True
    critic_weight = aggregate.token_mean(first, step_of=step_of)

    def loss(logp, value=None, entropy=None, *, detached_logp=None):
        def objective(n, t):
            tokens = next(tokens for tokens in turns(batch, n) if t in tokens)
            shift = pieces._mean([logp[n, s] - batch.logp_old[n, s] for s in tokens])
            return pieces.clipped(math.exp(shift), credit[n, t], *clip)

        critic = methods._value_loss(batch, critic_weight, returns, value, value_clip)
        return -methods._weighted_sum(weight, objective) + value_coefficient * critic

    return Oracle(credit=credit, loss=loss, weight=weight, returns=returns)


def bi_level_gae(
    batch: Batch,
    *,
    gamma: float = 1.0,
    lam: float = 1.0,
    turn_gamma: float = 0.95,
    whiten: bool = True,
    clip: tuple[float, float] = (0.2, 0.28),
    value_clip: float | None = 0.2,
    value_coefficient: float = 0.1,
    ddof: int = 1,
    eps: float = 1e-8,
    step_of: np.ndarray | None = None,
) -> Oracle:
    """Token-mean PPO on `two_level_gae`, whitened after the targets are taken (2504.20073)."""
    advantage, returns = two_level_gae(batch, gamma=gamma, lam=lam, turn_gamma=turn_gamma)
    credit = pieces.whiten_tokens(batch, advantage, ddof=ddof, eps=eps) if whiten else advantage
    weight = aggregate.token_mean(batch.mask, step_of=step_of)
    policy = methods._clip_loss(batch, credit, weight, clip)

    def loss(logp, value=None, entropy=None, *, detached_logp=None):
        critic = methods._value_loss(batch, weight, returns, value, value_clip)
        return policy(logp) + value_coefficient * critic

    return Oracle(credit=credit, loss=loss, weight=weight, returns=returns)


def starpo(
    batch: Batch,
    *,
    critic: bool = True,
    fraction: float = 1.0,
    step_of: np.ndarray | None = None,
    **base,
) -> Oracle:
    """PPO (or GRPO, `critic=False`) on whole trajectories of uncertain groups (2504.20073).

    Below `fraction = 1` the other groups are dropped before any statistic is taken. `base` holds
    the arguments of `methods.ppo` or `methods.grpo`; PPO has `gamma = lam = 1` and `beta` 0.001.
    """
    rows = most_uncertain(batch, fraction) if fraction < 1.0 else batch.group >= 0
    kept = replace(batch, mask=batch.mask & rows[:, None], scored=batch.scored & rows)
    base = {"beta": 0.001, **base}
    if critic:
        return methods.ppo(kept, step_of=step_of, **{"gamma": 1.0, "lam": 1.0, **base})
    return methods.grpo(kept, step_of=step_of, **base)


def starpo_s(batch: Batch, *, fraction: float = 0.25, critic: bool = True, **base) -> Oracle:
    """StarPO-S: the uncertain quarter of the groups, clip (0.2, 0.28), no KL (2504.20073)."""
    return starpo(
        batch, critic=critic, fraction=fraction, **{"clip": (0.2, 0.28), "beta": 0.0, **base}
    )


def _clip_and_k3(
    batch: Batch,
    credit: np.ndarray,
    clip: tuple[float, float],
    beta: float,
    step_of: np.ndarray | None,
) -> Oracle:
    """Token-mean PPO clip plus `beta k3` to the reference."""
    weight = aggregate.token_mean(batch.mask, step_of=step_of)
    policy = methods._clip_loss(batch, credit, weight, clip)

    def loss(logp, value=None, entropy=None, *, detached_logp=None):
        def penalty(n, t):
            return beta * pieces.k3(logp[n, t] - batch.logp_ref[n, t])

        return policy(logp) + methods._weighted_sum(weight, penalty)

    return Oracle(credit=credit, loss=loss, weight=weight)
