"""One function per method key: credit and loss as the paper writes them, for any `Batch`.

Each returns an `Oracle`; its `loss` is minimised and takes `logp [N, T]`, the critic's `value` and
the policy's `entropy` `[N, T]` (None leaves that term out) and `detached_logp`, the log-probability
seen by everything under a stop-gradient (default: `logp`). README.md says what each source states.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from . import aggregate, pieces
from .batch import Batch


@dataclass(frozen=True, kw_only=True)
class Oracle:
    """A method on one batch."""

    credit: np.ndarray  # [N, T], 0 off the mask
    loss: Callable[..., float]  # loss(logp, value=None, entropy=None, *, detached_logp=None)
    weight: np.ndarray  # [N, T] of the policy term
    returns: np.ndarray | None = None  # [N, T] targets of the critic, where there is one


def gradient(
    loss: Callable[..., float],
    logp: np.ndarray,
    *,
    wrt: str = "logp",
    h: float = 1e-6,
    **kw: np.ndarray,
) -> np.ndarray:
    """Central finite difference of `loss` in every entry of `logp`, or of `kw[wrt]`.

    Whatever is under a stop-gradient is held at `logp`.
    """
    inputs = {"logp": logp, **kw}
    out = np.zeros(logp.shape)
    for n in range(logp.shape[0]):
        for t in range(logp.shape[1]):
            ends = []
            for sign in (1.0, -1.0):
                moved = inputs[wrt].copy()
                moved[n, t] += sign * h
                ends.append(loss(**{**inputs, wrt: moved}, detached_logp=logp))
            out[n, t] = (ends[0] - ends[1]) / (2.0 * h)
    return out


def reinforce(
    batch: Batch,
    *,
    gamma: float | None = None,
    importance_cap: float | None = None,
    step_of: np.ndarray | None = None,
) -> Oracle:
    """`L = -mean_i sum_t sg[w_it] A_it l_it` (Williams 1992).

    `A` is the outcome, or the reward-to-go if `gamma` is given; `w` is 1, or the truncated
    `min(pi / sampler, importance_cap)` of the current policy.
    """
    outcome = pieces.on_tokens(batch, pieces.outcome_return(batch))
    credit = outcome if gamma is None else _scored(batch, pieces.reward_to_go(batch, gamma))
    weight = aggregate.sequence_sum_mean(batch.mask, step_of=step_of)

    def loss(logp, value=None, entropy=None, *, detached_logp=None):
        held = logp if detached_logp is None else detached_logp

        def objective(n, t):
            w = 1.0
            if importance_cap is not None:
                w = pieces.truncated_is(held[n, t] - batch.logp_sampler[n, t], importance_cap)
            return w * credit[n, t] * logp[n, t]

        return -_weighted_sum(weight, objective)

    return Oracle(credit=credit, loss=loss, weight=weight)


def a2c(
    batch: Batch,
    *,
    gamma: float = 1.0,
    lam: float = 1.0,
    value_coefficient: float = 0.5,
    entropy_coefficient: float = 0.01,
    step_of: np.ndarray | None = None,
) -> Oracle:
    """`L = token_mean(-A l) + c_v token_mean(0.5 (V - G)^2) - c_e token_mean(H)` (1602.01783)."""
    credit, returns = pieces.gae(batch, batch.reward, gamma=gamma, lam=lam)
    weight = aggregate.token_mean(batch.mask, step_of=step_of)

    def loss(logp, value=None, entropy=None, *, detached_logp=None):
        total = -_weighted_sum(weight, lambda n, t: credit[n, t] * logp[n, t])
        total += value_coefficient * _value_loss(batch, weight, returns, value, None)
        return total - entropy_coefficient * _entropy(weight, entropy)

    return Oracle(credit=credit, loss=loss, weight=weight, returns=returns)


def ppo(
    batch: Batch,
    *,
    beta: float = 0.02,
    gamma: float = 1.0,
    lam: float = 0.95,
    clip: tuple[float, float] = (0.2, 0.2),
    dual_clip: float | None = None,
    whiten: bool = True,
    value_clip: float | None = 0.2,
    value_coefficient: float = 0.1,
    entropy_coefficient: float = 0.0,
    ddof: int = 1,
    eps: float = 1e-8,
    step_of: np.ndarray | None = None,
) -> Oracle:
    """`L = token_mean(-min(r A, clip(r) A)) + c_v token_mean(value error) - c_e token_mean(H)`.

    `A` is GAE of `reward - beta k1(old, ref)`, whitened over tokens after the returns `A + V` are
    taken (1707.06347; for language models 1909.08593 and 2203.02155).
    """
    reward = pieces.kl_in_reward(batch, beta)
    advantage, returns = pieces.gae(batch, reward, gamma=gamma, lam=lam)
    credit = pieces.whiten_tokens(batch, advantage, ddof=ddof, eps=eps) if whiten else advantage
    weight = aggregate.token_mean(batch.mask, step_of=step_of)

    def loss(logp, value=None, entropy=None, *, detached_logp=None):
        def objective(n, t):
            ratio = pieces.token_ratio(logp[n, t], batch.logp_old[n, t])
            if dual_clip is not None:
                return pieces.dual_clipped(ratio, credit[n, t], *clip, dual_clip)
            return pieces.clipped(ratio, credit[n, t], *clip)

        total = -_weighted_sum(weight, objective)
        total += value_coefficient * _value_loss(batch, weight, returns, value, value_clip)
        return total - entropy_coefficient * _entropy(weight, entropy)

    return Oracle(credit=credit, loss=loss, weight=weight, returns=returns)


def rloo(
    batch: Batch,
    *,
    beta: float = 0.05,
    clip: tuple[float, float] | None = None,
    step_of: np.ndarray | None = None,
) -> Oracle:
    """`L = -mean_i A_i sum_t l_it`, `A` the leave-one-out of `R_i - beta sum_t k1` (2402.14740).

    With `clip` the ratio form instead: `-mean_i min(s A, clip(s) A)`, `s` the full product.
    """
    penalised = pieces.outcome_return(batch, pieces.kl_in_reward(batch, beta))
    sequence = pieces.leave_one_out_baseline(batch, penalised)
    credit = pieces.on_tokens(batch, sequence)
    weight = aggregate.sequence_sum_mean(batch.mask, step_of=step_of)
    row_weight = aggregate.sequence_mean(batch.mask, step_of=step_of)

    def loss(logp, value=None, entropy=None, *, detached_logp=None):
        def ratio_objective(n, t):
            ratio = pieces.sequence_ratio_full(batch, n, logp, batch.logp_old)
            return pieces.clipped(ratio, credit[n, t], *clip)

        if clip is not None:
            return -_weighted_sum(row_weight, ratio_objective)
        return -_weighted_sum(weight, lambda n, t: credit[n, t] * logp[n, t])

    return Oracle(credit=credit, loss=loss, weight=weight if clip is None else row_weight)


def remax(batch: Batch, *, beta: float = 0.0, step_of: np.ndarray | None = None) -> Oracle:
    """`L = -mean_i sum_t A_it l_it`, `A` the reward-to-go minus the greedy return (2310.10505)."""
    reward = pieces.kl_in_reward(batch, beta)
    credit = pieces.remax_baseline(batch, pieces.reward_to_go(batch, 1.0, reward))
    weight = aggregate.sequence_sum_mean(batch.mask, step_of=step_of)

    def loss(logp, value=None, entropy=None, *, detached_logp=None):
        return -_weighted_sum(weight, lambda n, t: credit[n, t] * logp[n, t])

    return Oracle(credit=credit, loss=loss, weight=weight)


def reinforce_pp(
    batch: Batch,
    *,
    beta: float = 0.01,
    gamma: float = 1.0,
    clip: tuple[float, float] = (0.2, 0.2),
    ddof: int = 1,
    eps: float = 1e-8,
    step_of: np.ndarray | None = None,
) -> Oracle:
    """Token-mean PPO clip on the whitened reward-to-go of `reward - beta k1` (2501.03262)."""
    returns = pieces.reward_to_go(batch, gamma, pieces.kl_in_reward(batch, beta))
    credit = pieces.whiten_tokens(batch, returns, ddof=ddof, eps=eps)
    weight = aggregate.token_mean(batch.mask, step_of=step_of)
    return Oracle(credit=credit, loss=_clip_loss(batch, credit, weight, clip), weight=weight)


def grpo(
    batch: Batch,
    *,
    clip: tuple[float, float] = (0.2, 0.2),
    beta: float = 0.04,
    ratio_cap: float | None = None,
    ddof: int = 1,
    eps: float = 1e-6,
    step_of: np.ndarray | None = None,
) -> Oracle:
    """`L = mean_i (1/L_i) sum_t (-min(r A, clip(r) A) + beta k3)` (2402.03300).

    `ratio_cap` caps the ratio before the clip: two-sided GRPO (2505.07291).
    """
    outcome = pieces.outcome_return(batch)
    credit = pieces.on_tokens(batch, pieces.group_normalised(batch, outcome, ddof=ddof, eps=eps))
    weight = aggregate.sequence_mean(batch.mask, step_of=step_of)

    def loss(logp, value=None, entropy=None, *, detached_logp=None):
        def objective(n, t):
            ratio = pieces.token_ratio(logp[n, t], batch.logp_old[n, t])
            if ratio_cap is not None:
                ratio = pieces.ratio_capped(ratio, ratio_cap)
            penalty = pieces.k3(logp[n, t] - batch.logp_ref[n, t])
            return pieces.clipped(ratio, credit[n, t], *clip) - beta * penalty

        return -_weighted_sum(weight, objective)

    return Oracle(credit=credit, loss=loss, weight=weight)


def dr_grpo(
    batch: Batch,
    *,
    length: float = 3000.0,
    clip: tuple[float, float] = (0.2, 0.2),
    step_of: np.ndarray | None = None,
) -> Oracle:
    """`L = -mean_i (1/length) sum_t min(r A, clip(r) A)`, `A = R - mean_g R` (2503.20783)."""
    outcome = pieces.outcome_return(batch)
    credit = pieces.on_tokens(batch, pieces.group_mean_baseline(batch, outcome))
    weight = aggregate.constant_length(batch.mask, length, step_of=step_of)
    return Oracle(credit=credit, loss=_clip_loss(batch, credit, weight, clip), weight=weight)


def dapo(
    batch: Batch,
    *,
    accuracy: np.ndarray | None = None,
    clip: tuple[float, float] = (0.2, 0.28),
    overlong: tuple[float, float] | None = None,
    drop_truncated: bool = False,
    ddof: int = 1,
    eps: float = 1e-6,
    step_of: np.ndarray | None = None,
) -> Oracle:
    """Token-mean clip-higher on groups that disagree, with overlong shaping (2503.14476).

    A group whose scored members all have the same `accuracy` (default: the unshaped outcome) is
    dropped from numerator and denominator. `overlong = (max_length, cache)` adds the soft overlong
    penalty to the outcome before grouping. `drop_truncated` masks truncated rows after grouping.
    """
    outcome = pieces.outcome_return(batch)
    keep = pieces.keep_spread_groups(batch, batch.mask, outcome if accuracy is None else accuracy)
    if drop_truncated:
        keep = pieces.keep_terminated(batch, keep)
    shaped = outcome.copy()
    if overlong is not None:
        for n in range(len(shaped)):
            shaped[n] += pieces.overlong_penalty(batch.length[n], *overlong)
    credit = pieces.on_tokens(batch, pieces.group_normalised(batch, shaped, ddof=ddof, eps=eps))
    credit = np.where(keep, credit, 0.0)
    weight = aggregate.token_mean(keep, step_of=step_of)
    return Oracle(credit=credit, loss=_clip_loss(batch, credit, weight, clip), weight=weight)


def gspo(
    batch: Batch,
    *,
    clip: tuple[float, float] = (3e-4, 4e-4),
    token_gradient: bool = False,
    ddof: int = 1,
    eps: float = 1e-6,
    step_of: np.ndarray | None = None,
) -> Oracle:
    """`L = -mean_i min(s_i A_i, clip(s_i) A_i)`, `s_i` the geometric mean ratio (2507.18071).

    `token_gradient` is GSPO-token: `s_it = sg[s_i] exp(l - sg[l])` on each token instead.
    """
    outcome = pieces.outcome_return(batch)
    credit = pieces.on_tokens(batch, pieces.group_normalised(batch, outcome, ddof=ddof, eps=eps))
    weight = aggregate.sequence_mean(batch.mask, step_of=step_of)

    def loss(logp, value=None, entropy=None, *, detached_logp=None):
        held = logp if detached_logp is None else detached_logp

        def objective(n, t):
            if token_gradient:
                ratio = pieces.gspo_token_ratio(batch, n, t, logp, held)
            else:
                ratio = pieces.sequence_ratio_geometric(batch, n, logp, batch.logp_old)
            return pieces.clipped(ratio, credit[n, t], *clip)

        return -_weighted_sum(weight, objective)

    return Oracle(credit=credit, loss=loss, weight=weight)


def cispo(
    batch: Batch,
    *,
    low: float = math.inf,
    high: float = 4.0,
    ddof: int = 1,
    eps: float = 1e-6,
    step_of: np.ndarray | None = None,
) -> Oracle:
    """`L = -token_mean(sg[clip(r, 1 - low, 1 + high)] A l)` (2506.13585)."""
    outcome = pieces.outcome_return(batch)
    credit = pieces.on_tokens(batch, pieces.group_normalised(batch, outcome, ddof=ddof, eps=eps))
    weight = aggregate.token_mean(batch.mask, step_of=step_of)

    def loss(logp, value=None, entropy=None, *, detached_logp=None):
        held = logp if detached_logp is None else detached_logp

        def objective(n, t):
            ratio = pieces.token_ratio(held[n, t], batch.logp_old[n, t])
            return pieces.cispo_weight(ratio, low, high) * credit[n, t] * logp[n, t]

        return -_weighted_sum(weight, objective)

    return Oracle(credit=credit, loss=loss, weight=weight)


def _clip_loss(
    batch: Batch, credit: np.ndarray, weight: np.ndarray, clip: tuple[float, float]
) -> Callable[..., float]:
    """The loss of every method whose only trajectory-side piece is the token ratio's clip."""

    def loss(logp, value=None, entropy=None, *, detached_logp=None):
        def objective(n, t):
            ratio = pieces.token_ratio(logp[n, t], batch.logp_old[n, t])
            return pieces.clipped(ratio, credit[n, t], *clip)

        return -_weighted_sum(weight, objective)

    return loss


def _weighted_sum(weight: np.ndarray, objective: Callable[[int, int], float]) -> float:
    """`sum weight * objective`, the objective asked only where the weight is not zero."""
    total = 0.0
    for n in range(weight.shape[0]):
        for t in range(weight.shape[1]):
            if weight[n, t] != 0.0:
                total += weight[n, t] * objective(n, t)
    return float(total)


def _value_loss(
    batch: Batch,
    weight: np.ndarray,
    returns: np.ndarray,
    value: np.ndarray | None,
    clip: float | None,
) -> float:
    """The critic's term; a row without a score has no target, but its tokens stay counted."""
    if value is None:
        return 0.0

    def error(n, t):
        if not batch.scored[n]:
            return 0.0
        return pieces.value_error(value[n, t], returns[n, t], batch.value[n, t], clip)

    return _weighted_sum(weight, error)


def _entropy(weight: np.ndarray, entropy: np.ndarray | None) -> float:
    return 0.0 if entropy is None else _weighted_sum(weight, lambda n, t: entropy[n, t])


def _scored(batch: Batch, credit: np.ndarray) -> np.ndarray:
    """`credit` with 0 on rows without a score."""
    out = credit.copy()
    for n in range(len(out)):
        if not batch.scored[n]:
            out[n, :] = 0.0
    return out
