"""Persistent baselines and process rewards; conventions as in `methods.py`."""

import math

import numpy as np

from . import aggregate, credit_pieces, methods, pieces, regression
from .batch import Batch
from .methods import Oracle

PRIOR = 0.5  # alpha and beta of a prompt never met, or without a place in the data set

# ------------------------------------------------------------------ SPO


def initial_tracker(scores: list[list[float]], *, lowest: float = 0.875) -> dict[str, np.ndarray]:
    """SPO's tracker from earlier scores in [0, 1], one list per prompt (2509.13232).

    `1 / (1 - lowest)` pseudo-observations at the smoothed mean `(sum + 0.5) / (n + 1)`; a prompt
    without scores has `alpha = beta = 0.5`.
    """
    alpha, beta = np.full(len(scores), PRIOR), np.full(len(scores), PRIOR)
    for p, seen in enumerate(scores):
        if seen:
            mass = 1.0 / (1.0 - lowest) / (len(seen) + 1)
            alpha[p] = mass * (sum(seen) + 0.5)
            beta[p] = mass * (len(seen) - sum(seen) + 0.5)
    return {"alpha": alpha, "beta": beta}


def forgetting(drift: float, *, half: float = 0.06, lowest: float = 0.875, highest: float = 0.96):
    """`clip(2^(-drift / half), lowest, highest)`: how much of the past is kept."""
    return max(lowest, min(2.0 ** (-drift / half), highest))


def updated_tracker(
    batch: Batch,
    tracker: dict[str, np.ndarray],
    *,
    half: float = 0.06,
    lowest: float = 0.875,
    highest: float = 0.96,
) -> dict[str, np.ndarray]:
    """The tracker after the batch: `alpha <- rho alpha + R`, `beta <- rho beta + (1 - R)`.

    The paper has one row per prompt. Of several, each adds its own and the past is discounted
    once. Rows without a score or a prompt leave no trace.
    """
    outcome = pieces.outcome_return(batch)
    after = {name: column.copy() for name, column in tracker.items()}
    for p in sorted({int(p) for p in batch.prompt if p >= 0}):
        rows = [n for n in range(len(outcome)) if batch.prompt[n] == p and batch.scored[n]]
        if rows:
            kept = forgetting(batch.drift[rows[0]], half=half, lowest=lowest, highest=highest)
            after["alpha"][p] = kept * tracker["alpha"][p] + sum(outcome[n] for n in rows)
            after["beta"][p] = kept * tracker["beta"][p] + sum(1.0 - outcome[n] for n in rows)
    return after


def success_rate(batch: Batch, tracker: dict[str, np.ndarray]) -> np.ndarray:
    """`alpha / (alpha + beta)` `[N]` of each row's prompt; 1/2 where there is none."""
    out = np.full(len(batch.prompt), 0.5)
    for n, p in enumerate(batch.prompt):
        if p >= 0:
            out[n] = tracker["alpha"][p] / (tracker["alpha"][p] + tracker["beta"][p])
    return out


def spo_single_stream(
    batch: Batch,
    *,
    tracker: dict[str, np.ndarray],
    clip: tuple[float, float] = (0.2, 0.28),
    ddof: int = 1,
    eps: float = 1e-8,
    step_of: np.ndarray | None = None,
) -> Oracle:
    """Token-mean PPO clip on `R - p`, whitened over rows, `p` as tracked before (2509.13232)."""
    sequence = pieces.outcome_return(batch) - success_rate(batch, tracker)
    sequence = pieces.whiten_sequences(batch, sequence, ddof=ddof, eps=eps)
    credit = pieces.on_tokens(batch, sequence)
    weight = aggregate.token_mean(batch.mask, step_of=step_of)
    return Oracle(
        credit=credit, loss=methods._clip_loss(batch, credit, weight, clip), weight=weight
    )


# ------------------------------------------------------------------ PRIME


def implicit_reward(batch: Batch, beta: float, *, normalise: bool = True) -> np.ndarray:
    """`beta (l_prm - l_ref)` `[N, T]` on every action but the row's last (2502.01456).

    `normalise` divides by the largest absolute sum-to-go of the batch, plus 1e-6. 0 on rows
    without a score.
    """
    out = np.zeros(batch.mask.shape)
    for n in range(len(out)):
        for t in batch.actions(n)[:-1]:
            if batch.scored[n]:
                out[n, t] = beta * (batch.logp_prm[n, t] - batch.logp_ref[n, t])
    if normalise:
        out /= np.abs(pieces.reward_to_go(batch, 1.0, out)).max() + 1e-6
    return out


def process_leave_one_out(batch: Batch, reward: np.ndarray) -> np.ndarray:
    """`r_it G / (G - 1) - sum_j mean_t r_jt / (G - 1)` `[N, T]`.

    That is the token minus the mean of the others' row means when `r_it` is its own row's mean. G
    counts the group's scored rows with an action; with fewer than two of them the credit is 0.
    """
    out = np.zeros(reward.shape)
    for n in range(len(out)):
        rows = [j for j in batch.members(batch.group[n]) if batch.actions(j)]
        if n not in rows or len(rows) < 2:
            continue
        means = [pieces._mean([reward[j, t] for t in batch.actions(j)]) for j in rows]
        for t in batch.actions(n):
            out[n, t] = (len(rows) * reward[n, t] - sum(means)) / (len(rows) - 1)
    return out


def prime_credit(
    batch: Batch, beta: float, weights: tuple[float, float], *, normalise: bool
) -> np.ndarray:
    """Sum-to-go of `w_p` process LOO plus `w_o` outcome LOO on the last action `[N, T]`."""
    process = process_leave_one_out(batch, implicit_reward(batch, beta, normalise=normalise))
    outcome = pieces.leave_one_out_baseline(batch, pieces.outcome_return(batch))
    both = weights[0] * process
    for n in range(len(both)):
        if batch.actions(n):
            both[n, batch.actions(n)[-1]] += weights[1] * outcome[n]
    return pieces.reward_to_go(batch, 1.0, both)


def prime(
    batch: Batch,
    *,
    beta: float = 0.05,
    weights: tuple[float, float] = (5.0, 5.0),
    normalise: bool = True,
    clip: tuple[float, float] = (0.2, 0.2),
    model_coefficient: float = 1.0,
    ddof: int = 1,
    eps: float = 1e-8,
    step_of: np.ndarray | None = None,
) -> Oracle:
    """Token-mean PPO clip on whitened `prime_credit`, plus the reward model's own loss.

    That is `mean_i` of the cross-entropy of `sigmoid(beta sum_t (l_prm - l_ref))` with the row's
    correctness; `logp_prm` `[N, T]` is an output of the loss (None leaves the term out).
    """
    credit = prime_credit(batch, beta, weights, normalise=normalise)
    credit = pieces.whiten_tokens(batch, credit, ddof=ddof, eps=eps)
    weight = aggregate.token_mean(batch.mask, step_of=step_of)
    row_weight = aggregate.sequence_mean(batch.mask, step_of=step_of)
    policy = methods._clip_loss(batch, credit, weight, clip)
    correct = credit_pieces.correct_rows(batch)

    def loss(logp, value=None, entropy=None, *, detached_logp=None, logp_prm=None):
        def cross_entropy(n, t):
            score = beta * regression.log_ratio(batch, n, logp_prm, batch.logp_ref)
            return math.log1p(math.exp(-score if correct[n] else score))

        total = policy(logp, detached_logp=detached_logp)
        if logp_prm is not None:
            total += model_coefficient * regression._scored_sum(batch, row_weight, cross_entropy)
        return total

    return Oracle(credit=credit, loss=loss, weight=weight)
