"""REINFORCE with other baselines, and its off-policy relatives; conventions as in `methods.py`."""

import math

import numpy as np

from . import aggregate, credit_pieces, methods, pieces, surrogate_pieces
from .batch import Batch
from .methods import Oracle


def reinforce_pp_baseline(
    batch: Batch,
    *,
    beta: float = 1e-5,
    clip: tuple[float, float] = (0.2, 0.2),
    ddof: int = 1,
    eps: float = 1e-8,
    step_of: np.ndarray | None = None,
) -> Oracle:
    """`L = token_mean(-min(r A, clip(r) A) + beta k2)` (REINFORCE++-baseline, 2501.03262).

    `A` is `R - mean_g R`, whitened over the tokens of the batch.
    """
    centred = pieces.group_mean_baseline(batch, pieces.outcome_return(batch))
    credit = pieces.whiten_tokens(batch, pieces.on_tokens(batch, centred), ddof=ddof, eps=eps)
    weight = aggregate.token_mean(batch.mask, step_of=step_of)

    def objective(n, t, logp, held):
        ratio = pieces.token_ratio(logp[n, t], batch.logp_old[n, t])
        penalty = pieces.k2(logp[n, t] - batch.logp_ref[n, t])
        return pieces.clipped(ratio, credit[n, t], *clip) - beta * penalty

    return Oracle(credit=credit, loss=surrogate_pieces.surrogate(weight, objective), weight=weight)


def opo(batch: Batch, *, step_of: np.ndarray | None = None) -> Oracle:
    """`L = -token_mean(A l)`, `A = R_i - sum_j L_j R_j / sum_j L_j`, on-policy (2505.23585)."""
    outcome = pieces.outcome_return(batch)
    credit = pieces.on_tokens(batch, pieces.length_weighted_baseline(batch, outcome))
    weight = aggregate.token_mean(batch.mask, step_of=step_of)
    return Oracle(credit=credit, loss=surrogate_pieces.weighted_logp(credit, weight), weight=weight)


def otb(
    batch: Batch,
    *,
    compacted: bool = True,
    zero_tail: bool = True,
    importance_cap: float | None = None,
    clip: tuple[float, float] = (0.2, 0.2),
    eps: float = 1e-8,
    step_of: np.ndarray | None = None,
) -> Oracle:
    """Token-mean PPO clip on `G_t - b_t` with the optimal token baseline (2602.07078).

    `compacted` aligns rows by the number of the action token, which the authors do for rows with
    observations; without observations it is the same as their plain form.
    """
    credit = credit_pieces.optimal_token_baseline(
        batch, compacted=compacted, zero_tail=zero_tail, importance_cap=importance_cap, eps=eps
    )
    weight = aggregate.token_mean(batch.mask, step_of=step_of)
    return Oracle(
        credit=credit, loss=methods._clip_loss(batch, credit, weight, clip), weight=weight
    )


def gpg(
    batch: Batch,
    *,
    normaliser: float = 1.0,
    step_of: np.ndarray | None = None,
) -> Oracle:
    """`L = -token_mean(A l)`, `A = B / (B - M) (R - mean_g R) / normaliser` (2504.02546).

    M of the B scored rows are in groups without a gradient.
    """
    outcome = pieces.outcome_return(batch)
    scale = credit_pieces.informative_scale(batch, outcome) / normaliser
    credit = pieces.on_tokens(batch, scale * pieces.group_mean_baseline(batch, outcome))
    weight = aggregate.token_mean(batch.mask, step_of=step_of)
    return Oracle(credit=credit, loss=surrogate_pieces.weighted_logp(credit, weight), weight=weight)


def lite_ppo(
    batch: Batch,
    *,
    clip: tuple[float, float] = (0.2, 0.2),
    ddof: int = 1,
    eps: float = 1e-6,
    step_of: np.ndarray | None = None,
) -> Oracle:
    """Token-mean PPO clip on `(R - mean_g R) / (std_batch R + eps)` (2508.08221)."""
    outcome = pieces.outcome_return(batch)
    scale = 1.0 / (pieces.batch_std(batch, outcome, ddof=ddof) + eps)
    credit = pieces.on_tokens(batch, scale * pieces.group_mean_baseline(batch, outcome))
    weight = aggregate.token_mean(batch.mask, step_of=step_of)
    return Oracle(
        credit=credit, loss=methods._clip_loss(batch, credit, weight, clip), weight=weight
    )


def topr(
    batch: Batch,
    *,
    baseline: float = 0.0,
    behaviour: np.ndarray | None = None,
    step_of: np.ndarray | None = None,
) -> Oracle:
    """`L = -mean_i sg[w_i] (R_i - baseline) sum_t l_it` (TOPR, 2503.14286).

    `w` is 1 where `R - baseline >= 0`, else `clip(pi(y) / mu(y), 0, 1)` over the whole response.
    `behaviour` `[N, T]` is mu's log-probability (default: the sampler's).
    """
    mu = batch.logp_sampler if behaviour is None else behaviour
    outcome = pieces.outcome_return(batch) - baseline
    credit = pieces.on_tokens(batch, outcome)
    weight = aggregate.sequence_sum_mean(batch.mask, step_of=step_of)

    def factor(n, t, held):
        shift = sum(held[n, s] - mu[n, s] for s in batch.actions(n))
        return surrogate_pieces.tapered(shift, outcome[n])

    return Oracle(
        credit=credit, loss=surrogate_pieces.weighted_logp(credit, weight, factor), weight=weight
    )


def asymre(batch: Batch, *, shift: float = -0.1, step_of: np.ndarray | None = None) -> Oracle:
    """`L = -mean_i (R_i - mean_g R - shift) sum_t l_it`, no importance weight (2506.20520).

    The shift acts on every scored row, also where `R_i - mean_g R` is 0.
    """
    centred = pieces.group_mean_baseline(batch, pieces.outcome_return(batch))
    credit = pieces.on_tokens(batch, centred - shift)
    weight = aggregate.sequence_sum_mean(batch.mask, step_of=step_of)
    return Oracle(credit=credit, loss=surrogate_pieces.weighted_logp(credit, weight), weight=weight)


def rec(
    batch: Batch,
    *,
    clip_mode: str = "one_side",
    weight_mode: str = "none",
    regulariser: str = "none",
    regulariser_coefficient: float = 0.0,
    clip: tuple[float, float] = (0.2, 0.2),
    outer: tuple[float, float] = (0.6, 2.0),
    temperature: float = 1.0,
    normalise: bool = False,
    step_of: np.ndarray | None = None,
) -> Oracle:
    """`L = token_mean(-sg[M w] A l + regulariser)`, `A = R - mean_g R` (2509.24203).

    `clip_mode` none, one_side, two_side or ring chooses the mask M of the token ratio;
    `weight_mode` none (1), importance (r) or advantage (`exp(A / temperature)`) chooses w;
    `regulariser` none, k2 (`c (l - l_old)^2`, no half) or forward_kl (`-c l`). `normalise` divides
    by the population deviation + 1e-6.
    """
    outcome = pieces.outcome_return(batch)
    sequence = pieces.group_mean_baseline(batch, outcome)
    if normalise:
        sequence = pieces.group_normalised(batch, outcome, ddof=0, eps=1e-6)
    credit = pieces.on_tokens(batch, sequence)
    weight = aggregate.token_mean(batch.mask, step_of=step_of)

    def objective(n, t, logp, held):
        a, old = credit[n, t], batch.logp_old[n, t]
        ratio = pieces.token_ratio(held[n, t], old)
        w = {"none": 1.0, "importance": ratio, "advantage": math.exp(a / temperature)}[weight_mode]
        is_open = surrogate_pieces.rec_open(ratio, a, clip_mode, clip, outer)
        terms = {"none": 0.0, "k2": (logp[n, t] - old) ** 2, "forward_kl": -logp[n, t]}
        penalty = regulariser_coefficient * terms[regulariser]
        return float(is_open) * w * a * logp[n, t] - penalty

    return Oracle(credit=credit, loss=surrogate_pieces.surrogate(weight, objective), weight=weight)
