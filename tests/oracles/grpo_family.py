"""GRPO with other normalisers, ratios and rewards; conventions as in `methods.py`."""

import math

import numpy as np

from . import aggregate, credit_pieces, methods, pieces, surrogate_pieces
from .batch import Batch
from .methods import Oracle


def bnpo(
    batch: Batch,
    *,
    low: float = 0.0,
    high: float = 1.0,
    clip: tuple[float, float] = (0.2, 0.2),
    step_of: np.ndarray | None = None,
) -> Oracle:
    """Token-mean PPO clip on the Beta-normalised credit of rewards in [low, high] (2506.02864)."""
    outcome = pieces.outcome_return(batch)
    sequence = credit_pieces.beta_normalised(batch, outcome, low=low, high=high)
    return _token_clip(batch, sequence, clip, step_of)


def gspo_token(
    batch: Batch,
    *,
    clip: tuple[float, float] = (3e-4, 4e-4),
    ddof: int = 1,
    eps: float = 1e-6,
    step_of: np.ndarray | None = None,
) -> Oracle:
    """GSPO whose ratio on each token is `sg[s_i] exp(l - sg[l])` (2507.18071, GSPO-token)."""
    return methods.gspo(batch, clip=clip, token_gradient=True, ddof=ddof, eps=eps, step_of=step_of)


def gmpo(
    batch: Batch,
    *,
    clip: tuple[float, float] = (0.4, 0.4),
    ddof: int = 1,
    eps: float = 1e-6,
    step_of: np.ndarray | None = None,
) -> Oracle:
    """`L = -mean_i A_i exp((1/L_i) sum_t c_it)`, `c` the clipped log-ratio (2507.20673)."""
    credit = credit_pieces.normalised_credit(batch, ddof, eps)
    weight = aggregate.sequence_mean(batch.mask, step_of=step_of)

    def objective(n, t, logp, held):
        actions = batch.actions(n)
        total = 0.0
        for s in actions:
            shift = logp[n, s] - batch.logp_old[n, s]
            total += surrogate_pieces.log_clipped(shift, credit[n, t], *clip)
        return credit[n, t] * math.exp(total / len(actions))

    return Oracle(credit=credit, loss=surrogate_pieces.surrogate(weight, objective), weight=weight)


def luspo(
    batch: Batch,
    *,
    clip: tuple[float, float] = (2e-3, 2.5e-3),
    ddof: int = 1,
    eps: float = 1e-6,
    step_of: np.ndarray | None = None,
) -> Oracle:
    """`L = -mean_i L_i min(s_i A_i, clip(s_i) A_i)`, `s` as in GSPO (2602.05261)."""
    credit = credit_pieces.normalised_credit(batch, ddof, eps)
    weight = aggregate.sequence_sum_mean(batch.mask, step_of=step_of)

    def objective(n, t, logp, held):
        ratio = pieces.sequence_ratio_geometric(batch, n, logp, batch.logp_old)
        return pieces.clipped(ratio, credit[n, t], *clip)

    return Oracle(credit=credit, loss=surrogate_pieces.surrogate(weight, objective), weight=weight)


def sapo(
    batch: Batch,
    *,
    tau_positive: float = 1.0,
    tau_negative: float = 1.05,
    ddof: int = 1,
    eps: float = 1e-6,
    step_of: np.ndarray | None = None,
) -> Oracle:
    """`L = -mean_i (1/L_i) sum_t 4/tau sigmoid(tau (r - 1)) A` (2511.20347).

    `tau_positive` where `A > 0`, else `tau_negative`.
    """
    credit = credit_pieces.normalised_credit(batch, ddof, eps)
    weight = aggregate.sequence_mean(batch.mask, step_of=step_of)

    def objective(n, t, logp, held):
        tau = tau_positive if credit[n, t] > 0 else tau_negative
        ratio = pieces.token_ratio(logp[n, t], batch.logp_old[n, t])
        return surrogate_pieces.soft_gate(ratio, tau) * credit[n, t]

    return Oracle(credit=credit, loss=surrogate_pieces.surrogate(weight, objective), weight=weight)


def vespo(
    batch: Batch,
    *,
    positive: tuple[float, float] = (2.0, 3.0),
    negative: tuple[float, float] = (3.0, 2.0),
    anchor: np.ndarray | None = None,
    ddof: int = 1,
    eps: float = 1e-6,
    step_of: np.ndarray | None = None,
) -> Oracle:
    """`L = -token_mean(sg[exp(lam) W^k exp(-lam W)] A l)`, `W` the full ratio (2602.10693).

    `positive` and `negative` are `(k, lam)` for `A >= 0` and `A < 0`. `anchor` `[N, T]` is the
    log-probability under W (default: `logp_old`).
    """
    credit = credit_pieces.normalised_credit(batch, ddof, eps)
    weight = aggregate.token_mean(batch.mask, step_of=step_of)
    behind = batch.logp_old if anchor is None else anchor

    def factor(n, t, held):
        shift = sum(held[n, s] - behind[n, s] for s in batch.actions(n))
        return surrogate_pieces.gamma_weight(shift, *(positive if credit[n, t] >= 0 else negative))

    return Oracle(
        credit=credit, loss=surrogate_pieces.weighted_logp(credit, weight, factor), weight=weight
    )


def gdpo(
    batch: Batch,
    *,
    weights: dict[str, float] | None = None,
    over_tokens: bool = False,
    clip: tuple[float, float] = (0.2, 0.2),
    ddof: int = 1,
    eps: float = 1e-6,
    step_of: np.ndarray | None = None,
) -> Oracle:
    """Each reward component normalised in its group, summed, whitened over responses (2601.05242).

    `over_tokens` whitens over action tokens instead. Token-mean PPO clip.
    """
    total = credit_pieces.decoupled_normalised(batch, weights, ddof=ddof, eps=eps)
    if over_tokens:
        credit = pieces.whiten_tokens(batch, pieces.on_tokens(batch, total))
    else:
        credit = pieces.on_tokens(batch, pieces.whiten_sequences(batch, total))
    weight = aggregate.token_mean(batch.mask, step_of=step_of)
    return Oracle(
        credit=credit, loss=methods._clip_loss(batch, credit, weight, clip), weight=weight
    )


def passk_grpo(
    batch: Batch,
    *,
    estimator: str = "analytic",
    k: int = 4,
    correct: np.ndarray | None = None,
    scale: bool = False,
    clip: tuple[float, float] = (0.2, 0.2),
    eps: float = 1e-6,
    step_of: np.ndarray | None = None,
) -> Oracle:
    """Token-mean PPO clip on the credit of the best of k responses.

    `estimator` best_minus_second (2503.19595; k is the group, `scale` divides by its deviation),
    analytic (2508.10751; `correct` bool[N], default: an outcome above 0.5) or max_at_k (PKPO,
    2505.15201).
    """
    outcome = pieces.outcome_return(batch)
    if estimator == "best_minus_second":
        sequence = credit_pieces.best_minus_second(batch, outcome, scale=scale, eps=eps)
    elif estimator == "analytic":
        right = credit_pieces.correct_rows(batch) if correct is None else correct
        sequence = credit_pieces.analytic_pass_at_k(batch, right, k, eps=eps)
    elif estimator == "max_at_k":
        sequence = credit_pieces.max_at_k(batch, outcome, k)
    else:
        raise ValueError(f"unknown estimator {estimator!r}")
    return _token_clip(batch, sequence, clip, step_of)


def nsr(
    batch: Batch,
    *,
    correct: np.ndarray | None = None,
    clip: tuple[float, float] = (0.2, 0.2),
    step_of: np.ndarray | None = None,
) -> Oracle:
    """Wrong responses alone, each with credit -1; the others are no tokens (2506.01347)."""
    right = credit_pieces.correct_rows(batch) if correct is None else correct
    return _signed(batch, right, 0.0, -1.0, batch.scored & ~right, clip, step_of)


def psr(
    batch: Batch,
    *,
    correct: np.ndarray | None = None,
    clip: tuple[float, float] = (0.2, 0.2),
    step_of: np.ndarray | None = None,
) -> Oracle:
    """Correct responses alone, each with credit 1; the others are no tokens (2506.01347)."""
    right = credit_pieces.correct_rows(batch) if correct is None else correct
    return _signed(batch, right, 1.0, 0.0, batch.scored & right, clip, step_of)


def w_reinforce(
    batch: Batch,
    *,
    positive: float = 0.1,
    correct: np.ndarray | None = None,
    clip: tuple[float, float] = (0.2, 0.2),
    step_of: np.ndarray | None = None,
) -> Oracle:
    """All responses: credit `positive` where correct, -1 where wrong (2506.01347)."""
    right = credit_pieces.correct_rows(batch) if correct is None else correct
    everyone = np.ones(len(right), bool)
    return _signed(batch, right, positive, -1.0, everyone, clip, step_of)


def two_sided(
    batch: Batch,
    *,
    ratio_cap: float = 4.0,
    clip: tuple[float, float] = (0.2, 0.2),
    beta: float = 0.001,
    ddof: int = 1,
    eps: float = 1e-6,
    step_of: np.ndarray | None = None,
) -> Oracle:
    """GRPO with the ratio capped before the clip, so that `A < 0` is bounded too (2505.07291)."""
    return methods.grpo(
        batch, clip=clip, beta=beta, ratio_cap=ratio_cap, ddof=ddof, eps=eps, step_of=step_of
    )


def _token_clip(
    batch: Batch,
    sequence: np.ndarray,
    clip: tuple[float, float],
    step_of: np.ndarray | None,
    keep: np.ndarray | None = None,
) -> Oracle:
    credit = pieces.on_tokens(batch, sequence)
    weight = aggregate.token_mean(batch.mask if keep is None else keep, step_of=step_of)
    return Oracle(
        credit=credit, loss=methods._clip_loss(batch, credit, weight, clip), weight=weight
    )


def _signed(
    batch: Batch,
    right: np.ndarray,
    positive: float,
    negative: float,
    rows: np.ndarray,
    clip: tuple[float, float],
    step_of: np.ndarray | None,
) -> Oracle:
    keep = credit_pieces.rows_only(batch.mask, rows)
    return _token_clip(batch, np.where(right, positive, negative), clip, step_of, keep)
