"""Other trust regions, and entropy control; conventions as in `methods.py`."""

import math
from collections.abc import Callable

import numpy as np

from . import aggregate, credit_pieces, methods, pieces, surrogate_pieces
from .batch import Batch
from .methods import Oracle

BAPO_SCRIPT = {  # the arguments of `bapo` that give what the authors' example script runs
    "low": (0.8, 0.95, 0.05),
    "high": (1.2, 2.0, 0.1),
    "target": 0.5,
    "contribution": surrogate_pieces.positive_to_negative,
    "high_first": False,
    "dual_clip": 3.0,
}


def aspo(
    batch: Batch,
    *,
    clip: tuple[float, float] = (0.2, 0.2),
    cap: float = 3.0,
    beta: float = 0.001,
    ddof: int = 1,
    eps: float = 1e-6,
    step_of: np.ndarray | None = None,
) -> Oracle:
    """`L = token_mean(-ASPO objective + beta k3)`: reciprocal weight where `A > 0` (2510.06062)."""
    credit = credit_pieces.normalised_credit(batch, ddof, eps)
    weight = aggregate.token_mean(batch.mask, step_of=step_of)

    def objective(n, t, logp, held):
        penalty = pieces.k3(logp[n, t] - batch.logp_ref[n, t])
        inner = surrogate_pieces.aspo_objective(
            logp[n, t], held[n, t], batch.logp_old[n, t], credit[n, t], clip=clip, cap=cap
        )
        return inner - beta * penalty

    return Oracle(credit=credit, loss=surrogate_pieces.surrogate(weight, objective), weight=weight)


def bapo(
    batch: Batch,
    *,
    low: tuple[float, float, float] = (0.6, 0.9, 0.02),
    high: tuple[float, float, float] = (1.2, 3.0, 0.05),
    target: float = 0.4,
    contribution: Callable[..., float] = surrogate_pieces.positive_share,
    high_first: bool = True,
    dual_clip: float | None = None,
    ddof: int = 1,
    eps: float = 1e-6,
    step_of: np.ndarray | None = None,
) -> Oracle:
    """`L = -token_mean(min(r A, clip(r, c_low, c_high) A))`, bounds searched per step (2510.18927).

    `low` and `high` are `(start, limit, step)` of the bounds on the ratio itself; they widen until
    `contribution` reaches `target`. The bounds are held constant.
    """
    credit = credit_pieces.normalised_credit(batch, ddof, eps)
    weight = aggregate.token_mean(batch.mask, step_of=step_of)
    steps = aggregate._steps(batch.mask, step_of)

    def bounds(rows, held):
        places = [(n, t) for n in rows for t in batch.actions(n)]
        ratio = np.array([pieces.token_ratio(held[at], batch.logp_old[at]) for at in places])
        tokens = np.array([credit[at] for at in places])
        prob = np.array([math.exp(batch.logp_old[at]) for at in places])
        return surrogate_pieces.search_bounds(
            lambda low, high: contribution(ratio, tokens, prob, low, high),
            target=target,
            low=low,
            high=high,
            high_first=high_first,
        )

    def loss(logp, value=None, entropy=None, *, detached_logp=None):
        held = logp if detached_logp is None else detached_logp
        found = {n: pair for rows in steps for pair in [bounds(rows, held)] for n in rows}

        def objective(n, t):
            c_low, c_high = found[n]
            clip = (1.0 - c_low, c_high - 1.0)
            ratio = pieces.token_ratio(logp[n, t], batch.logp_old[n, t])
            if dual_clip is not None:
                return pieces.dual_clipped(ratio, credit[n, t], *clip, dual_clip)
            return pieces.clipped(ratio, credit[n, t], *clip)

        return -methods._weighted_sum(weight, objective)

    return Oracle(credit=credit, loss=loss, weight=weight)


def dcpo(
    batch: Batch,
    *,
    memory: dict[str, np.ndarray] | None = None,
    clip: tuple[float, float] = (0.16, 0.2),
    r_max: float = 10.0,
    dual_clip: float | None = None,
    ddof: int = 1,
    step_of: np.ndarray | None = None,
) -> Oracle:
    """`L = -sum_i (1/L_i) sum_t min(r A, clip(r, r_low(q), r_high(q)) A)` (2509.02333).

    `A` is smoothed with `memory` (arrays n, mean, var per prompt; None: nothing met yet), whose
    next value `credit_pieces.smooth_standardised` gives. `clip` bounds `|r - 1| r q`.
    """
    memory = memory or credit_pieces.empty_memory(int(batch.prompt.max()) + 1)
    outcome = pieces.outcome_return(batch)
    sequence, _ = credit_pieces.smooth_standardised(batch, outcome, memory, ddof=ddof)
    credit = pieces.on_tokens(batch, sequence)
    weight = aggregate.sequence_mean_sum(batch.mask, step_of=step_of)

    def objective(n, t, logp, held):
        c_low, c_high = surrogate_pieces.dcpo_bounds(batch.logp_old[n, t], *clip, r_max)
        ratio = pieces.token_ratio(logp[n, t], batch.logp_old[n, t])
        bounds = (1.0 - c_low, c_high - 1.0)
        if dual_clip is not None:
            return pieces.dual_clipped(ratio, credit[n, t], *bounds, dual_clip)
        return pieces.clipped(ratio, credit[n, t], *bounds)

    return Oracle(credit=credit, loss=surrogate_pieces.surrogate(weight, objective), weight=weight)


def dppo_tv(batch: Batch, *, delta: tuple[float, float] = (0.15, 0.15), **kw) -> Oracle:
    """DPPO with the mask of `tv_open`; other arguments as in `dppo_kl` (2602.04879)."""
    return _dppo(batch, surrogate_pieces.tv_open, delta, **kw)


def dppo_kl(batch: Batch, *, delta: tuple[float, float] = (0.05, 0.05), **kw) -> Oracle:
    """`L = -mean_i (1/length) sum_t sg[M min(r, cap)] A l`, `A = R - mean_g R` (2602.04879).

    M is `kl_open` within `delta` (below, above). `length`, `cap` 20, `step_of`, and `anchor`
    `[N, T]`, the log-probability that r and M compare with (default: the sampler's).
    """
    return _dppo(batch, surrogate_pieces.kl_open, delta, **kw)


def _dppo(
    batch: Batch,
    is_open: Callable[..., bool],
    delta: tuple[float, float],
    *,
    length: float = 16384.0,
    cap: float = 20.0,
    anchor: np.ndarray | None = None,
    step_of: np.ndarray | None = None,
) -> Oracle:
    behind = batch.logp_sampler if anchor is None else anchor
    centred = pieces.group_mean_baseline(batch, pieces.outcome_return(batch))
    credit = pieces.on_tokens(batch, centred)
    weight = aggregate.constant_length(batch.mask, length, step_of=step_of)

    def factor(n, t, held):
        ratio = pieces.truncated_is(held[n, t] - behind[n, t], cap)
        return ratio * is_open(held[n, t], behind[n, t], credit[n, t], *delta)

    return Oracle(
        credit=credit, loss=surrogate_pieces.weighted_logp(credit, weight, factor), weight=weight
    )


def clip_cov(
    batch: Batch,
    uniform: np.ndarray,
    *,
    share: float = 2e-4,
    band: tuple[float, float] = (1.0, 5.0),
    clip: tuple[float, float] = (1.0, 1.0),
    ddof: int = 1,
    eps: float = 1e-6,
    step_of: np.ndarray | None = None,
) -> Oracle:
    """Token-mean PPO clip without a few tokens of high covariance (Clip-Cov, 2505.22617).

    Of the step's tokens that the clip leaves open and whose covariance lies inside `band`, the
    `max(1, floor(share N))` with the smallest `uniform` `[N, T]` lose their objective; the authors
    draw them at random. N and the covariance count action tokens of scored rows.
    """
    credit = credit_pieces.normalised_credit(batch, ddof, eps)
    weight = aggregate.token_mean(batch.mask, step_of=step_of)

    def chosen(places, held):
        cov = surrogate_pieces.covariances(credit, held, places)
        candidates = []
        for at in places:
            ratio = pieces.token_ratio(held[at], batch.logp_old[at])
            blocked = pieces.clipped(ratio, credit[at], *clip) < ratio * credit[at]
            if not blocked and band[0] < cov[at] < band[1]:
                candidates.append(at)
        ordered = sorted(candidates, key=lambda at: uniform[at])
        return ordered[: max(1, math.floor(share * len(places)))]

    def loss(logp, value=None, entropy=None, *, detached_logp=None):
        held = logp if detached_logp is None else detached_logp
        kept = weight.copy()
        for places in _scored_places(batch, step_of):
            for at in chosen(places, held):
                kept[at] = 0.0
        return methods._clip_loss(batch, credit, kept, clip)(logp)

    return Oracle(credit=credit, loss=loss, weight=weight)


def kl_cov(
    batch: Batch,
    *,
    share: float = 2e-4,
    coefficient: float = 1.0,
    ddof: int = 1,
    eps: float = 1e-6,
    step_of: np.ndarray | None = None,
) -> Oracle:
    """`L = token_mean(-r A + coefficient |l - l_old| on a few tokens)` (KL-Cov, 2505.22617).

    The few are the step's `max(1, floor(share N))` of largest covariance; there is no clip. N and
    the covariance count action tokens of scored rows.
    """
    credit = credit_pieces.normalised_credit(batch, ddof, eps)
    weight = aggregate.token_mean(batch.mask, step_of=step_of)

    def loss(logp, value=None, entropy=None, *, detached_logp=None):
        held = logp if detached_logp is None else detached_logp
        chosen = set()
        for places in _scored_places(batch, step_of):
            cov = surrogate_pieces.covariances(credit, held, places)
            ordered = sorted(places, key=lambda at: -cov[at])
            chosen.update(ordered[: max(1, math.floor(share * len(places)))])

        def objective(n, t):
            shift = logp[n, t] - batch.logp_old[n, t]
            penalty = coefficient * abs(shift) if (n, t) in chosen else 0.0
            return math.exp(shift) * credit[n, t] - penalty

        return -methods._weighted_sum(weight, objective)

    return Oracle(credit=credit, loss=loss, weight=weight)


def entropy_top_quantile(
    batch: Batch,
    *,
    share: float = 0.2,
    own_denominator: bool = True,
    accuracy: np.ndarray | None = None,
    clip: tuple[float, float] = (0.2, 0.28),
    step_of: np.ndarray | None = None,
) -> Oracle:
    """DAPO on the `share` of tokens with the largest entropy alone (2506.01939, eq. 6).

    The threshold is the `1 - share` quantile over the step's tokens that DAPO keeps; the mean is
    over the chosen tokens, or over all of them without `own_denominator`. Its loss needs
    `entropy`; `weight` is DAPO's, before the choice.
    """
    base = methods.dapo(batch, accuracy=accuracy, clip=clip, step_of=step_of)

    def loss(logp, value=None, entropy=None, *, detached_logp=None):
        keep = base.weight > 0
        for rows in aggregate._steps(base.weight > 0, step_of):
            places = [(n, t) for n in rows for t in np.flatnonzero(base.weight[n])]
            if not places:
                continue
            threshold = surrogate_pieces.quantile([entropy[at] for at in places], 1.0 - share)
            for at in places:
                keep[at] = entropy[at] >= threshold
        weight = np.where(keep, base.weight, 0.0)
        if own_denominator:
            weight = aggregate.token_mean(keep, step_of=step_of)
        return methods._clip_loss(batch, base.credit, weight, clip)(logp)

    return Oracle(credit=base.credit, loss=loss, weight=base.weight)


def adaptive_entropy(
    batch: Batch,
    *,
    coefficient: float = 0.0,
    measured: float = math.inf,
    target: float = 0.2,
    clip: tuple[float, float] = (0.2, 0.2),
    ddof: int = 1,
    eps: float = 1e-6,
    step_of: np.ndarray | None = None,
) -> Oracle:
    """Token-mean GRPO minus `coefficient * token_mean(H)` while `measured <= target` (2505.22312).

    `coefficient` and `measured`, the mean entropy, come from the step before, by way of
    `surrogate_pieces.entropy_controller`.
    """
    credit = credit_pieces.normalised_credit(batch, ddof, eps)
    weight = aggregate.token_mean(batch.mask, step_of=step_of)
    policy = methods._clip_loss(batch, credit, weight, clip)
    applied = coefficient if measured <= target else 0.0

    def loss(logp, value=None, entropy=None, *, detached_logp=None):
        return policy(logp) - applied * methods._entropy(weight, entropy)

    return Oracle(credit=credit, loss=loss, weight=weight)


def _scored_places(batch: Batch, step_of: np.ndarray | None) -> list[list[tuple[int, int]]]:
    """The action tokens of scored rows, one list per optimiser step that has any."""
    keep = credit_pieces.rows_only(batch.mask, batch.scored)
    return [
        [(n, t) for n in rows for t in batch.actions(n)]
        for rows in aggregate._steps(keep, step_of)
        if rows
    ]
