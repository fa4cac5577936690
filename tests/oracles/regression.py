"""Squared regressions of log-ratios on rewards; conventions as in `methods.py`.

`x_i = sum_t (l_it - anchor_it)` over the actions of row i. A row counts once; `weight` spreads it
over its tokens. A row without a score has no target: its term is 0, and it stays in the number of
rows. `credit` is what `x_i` is regressed on, up to the method's coefficient.
"""

import itertools
import math
from collections.abc import Callable

import numpy as np

from . import aggregate, credit_pieces, methods, pieces, surrogate_pieces
from .batch import Batch
from .methods import Oracle

# ------------------------------------------------------------------ pieces


def log_ratio(batch: Batch, n: int, logp: np.ndarray, anchor: np.ndarray) -> float:
    """`sum_t (l - anchor)` over the actions of row n; 0 for an empty row."""
    return sum(logp[n, t] - anchor[n, t] for t in batch.actions(n))


def optimal_value(returns: list[float], beta1: float) -> float:
    """`beta1 log mean_j exp(R_j / beta1)` over reference samples (A*-PO, 2505.20686)."""
    return beta1 * math.log(pieces._mean([math.exp(r / beta1) for r in returns]))


def length_reward(batch: Batch, outcome: np.ndarray, *, above: float = 0.5) -> np.ndarray:
    """Kimi k1.5's length reward `[N]` (2501.12599): `lam` if correct, else `min(0, lam)`.

    `lam = 0.5 - (L_i - L_min) / (L_max - L_min)` over the scored members of the group; 0 where
    all have one length. A row is correct when its outcome exceeds `above`.
    """
    out = np.zeros(len(outcome))
    for n in range(len(out)):
        lengths = [int(batch.length[j]) for j in batch.members(batch.group[n])]
        if batch.scored[n] and max(lengths) > min(lengths):
            lam = 0.5 - (batch.length[n] - min(lengths)) / (max(lengths) - min(lengths))
            out[n] = lam if outcome[n] > above else min(0.0, lam)
    return out


def partition_baseline(batch: Batch, outcome: np.ndarray, tau: float) -> np.ndarray:
    """`R_i - tau log mean_{j != i} exp(R_j / tau)` `[N]`, the free energy of the others."""
    out = np.zeros(len(outcome))
    for n in pieces._centred_rows(batch, outcome):
        others = [outcome[j] for j in batch.members(batch.group[n]) if j != n]
        top = max(others)
        free = top + tau * math.log(pieces._mean([math.exp((r - top) / tau) for r in others]))
        out[n] = outcome[n] - free
    return out


def prompt_value(batch: Batch, n: int, value: np.ndarray) -> float:
    """`V(q)`: the critic before the row's first action; 0 for an empty row."""
    actions = batch.actions(n)
    return value[n, actions[0]] if actions else 0.0


# ------------------------------------------------------------------ methods


def dro(
    batch: Batch,
    *,
    tau: float = 1.0,
    form: str = "sequence",
    step_of: np.ndarray | None = None,
) -> Oracle:
    """`form="sequence"`: `L = mean_i 0.5 (R_i - V(q) - tau x_i)^2`, anchor `logp_ref` (2405.19107).

    `value` is differentiated with the policy; without it the recorded critic stands in. `form=
    "token"` is verl's: `L = -token_mean(A l - 0.5 tau (l - l_old)^2)`, `A = R - V(q)`.
    """
    outcome = pieces.outcome_return(batch)
    centred = [r - prompt_value(batch, n, batch.value) for n, r in enumerate(outcome)]
    credit = pieces.on_tokens(batch, np.array(centred))
    if form == "token":
        return _dro_tokens(batch, credit, tau, step_of)
    weight = aggregate.sequence_mean(batch.mask, step_of=step_of)

    def loss(logp, value=None, entropy=None, *, detached_logp=None):
        critic = batch.value if value is None else value

        def error(n, t):
            x = log_ratio(batch, n, logp, batch.logp_ref)
            return 0.5 * (outcome[n] - prompt_value(batch, n, critic) - tau * x) ** 2

        return _scored_sum(batch, weight, error)

    return Oracle(credit=credit, loss=loss, weight=weight)


def rebel(batch: Batch, *, eta: float = 1.0, step_of: np.ndarray | None = None) -> Oracle:
    """`L = mean_g mean_{i<j} ((x_i - x_j) / eta - (R_i - R_j))^2`, anchor `logp_old` (2404.16767).

    The paper has one pair per prompt; here every pair of scored rows with an action. A group
    without a pair is counted among the groups.
    """
    outcome = pieces.outcome_return(batch)
    credit = pieces.on_tokens(batch, pieces.group_mean_baseline(batch, outcome))
    weight = aggregate.group_mean(batch.mask, batch.group, step_of=step_of)

    def loss(logp, value=None, entropy=None, *, detached_logp=None):
        total = 0.0
        for rows in aggregate._steps(batch.mask, step_of):
            groups = sorted({int(batch.group[n]) for n in rows})
            for g in groups:
                members = [n for n in rows if batch.group[n] == g and batch.scored[n]]
                errors = []
                for i, j in itertools.combinations(members, 2):
                    x_i, x_j = (log_ratio(batch, n, logp, batch.logp_old) for n in (i, j))
                    errors.append(((x_i - x_j) / eta - (outcome[i] - outcome[j])) ** 2)
                if errors:
                    total += pieces._mean(errors) / len(groups)
        return float(total)

    return Oracle(credit=credit, loss=loss, weight=weight)


def gvpo(
    batch: Batch,
    *,
    beta: float = 0.1,
    hold_mean: bool = True,
    step_of: np.ndarray | None = None,
) -> Oracle:
    """`L = mean_g 1/(G-1) sum_i 0.5 (beta (x_i - mean_g x) - (R_i - mean_g R))^2` (2504.19599).

    Anchor `logp_old`; means over scored members. `hold_mean` puts `mean_g x` under a
    stop-gradient: over a whole group the residuals sum to 0, so that its gradient vanishes anyway.
    """
    centred = pieces.group_mean_baseline(batch, pieces.outcome_return(batch))
    weight = aggregate.group_mean(batch.mask, batch.group, ddof=1, step_of=step_of)

    def loss(logp, value=None, entropy=None, *, detached_logp=None):
        held = logp if detached_logp is None or not hold_mean else detached_logp

        def error(n, t):
            members = batch.members(batch.group[n])
            mean = pieces._mean([log_ratio(batch, j, held, batch.logp_old) for j in members])
            x = log_ratio(batch, n, logp, batch.logp_old) - mean
            return 0.5 * (beta * x - centred[n]) ** 2

        return _scored_sum(batch, weight, error)

    return Oracle(credit=pieces.on_tokens(batch, centred), loss=loss, weight=weight)


def kimi_pmd(
    batch: Batch,
    *,
    tau: float = 0.01,
    baseline: str = "mean",
    length_penalty: float = 0.0,
    per_token: bool = False,
    step_of: np.ndarray | None = None,
) -> Oracle:
    """`L = mean_i 0.5 tau (A_i / tau - x_i)^2`, anchor `logp_old` (Kimi k1.5, 2501.12599).

    Its gradient is `-(A_i - tau x_i) grad log pi`. `baseline` is `"mean"` of the group, `"loo"` of
    the others, or `"partition"`, the others' free energy. `length_penalty` scales the length
    reward that is added to the outcome. `per_token` divides a row by `L_i`.
    """
    outcome = pieces.outcome_return(batch)
    outcome = outcome + length_penalty * length_reward(batch, outcome)
    sequence = {
        "mean": pieces.group_mean_baseline,
        "loo": pieces.leave_one_out_baseline,
        "partition": lambda batch, outcome: partition_baseline(batch, outcome, tau),
    }[baseline](batch, outcome)
    weight = aggregate.sequence_mean(batch.mask, step_of=step_of)

    def loss(logp, value=None, entropy=None, *, detached_logp=None):
        def error(n, t):
            x = log_ratio(batch, n, logp, batch.logp_old)
            row = 0.5 * tau * (sequence[n] / tau - x) ** 2
            return row / batch.length[n] if per_token else row

        return _scored_sum(batch, weight, error)

    return Oracle(credit=pieces.on_tokens(batch, sequence), loss=loss, weight=weight)


def a_star_po(batch: Batch, *, beta2: float = 1e-3, step_of: np.ndarray | None = None) -> Oracle:
    """`L = mean_i (beta2 x_i - (R_i - V*(q)))^2`, anchor `logp_ref` (2505.20686)."""
    advantage = pieces.outcome_return(batch) - batch.optimal_value
    weight = aggregate.sequence_mean(batch.mask, step_of=step_of)

    def loss(logp, value=None, entropy=None, *, detached_logp=None):
        def error(n, t):
            x = log_ratio(batch, n, logp, batch.logp_ref)
            return (beta2 * x - advantage[n]) ** 2

        return _scored_sum(batch, weight, error)

    return Oracle(credit=pieces.on_tokens(batch, advantage), loss=loss, weight=weight)


def flowrl(
    batch: Batch,
    *,
    beta: float = 15.0,
    cap: float = 10.0,
    ddof: int = 1,
    eps: float = 1e-6,
    step_of: np.ndarray | None = None,
) -> Oracle:
    """`L = mean_i sg[min(pi / pi_old, cap)] (log Z + x_i / L_i - beta A_i)^2` (2509.15207).

    `x` has the anchor `logp_ref`, `pi / pi_old` is the whole response's, `A` GRPO's credit; `log_z`
    `[N]` is an output of the loss (default: 0).
    """
    credit = credit_pieces.normalised_credit(batch, ddof, eps)
    weight = aggregate.sequence_mean(batch.mask, step_of=step_of)

    def loss(logp, value=None, entropy=None, *, detached_logp=None, log_z=None):
        held = logp if detached_logp is None else detached_logp
        log_z = np.zeros(len(batch.group)) if log_z is None else log_z

        def error(n, t):
            mean = log_ratio(batch, n, logp, batch.logp_ref) / batch.length[n]
            ratio = pieces.truncated_is(log_ratio(batch, n, held, batch.logp_old), cap)
            return ratio * (log_z[n] + mean - beta * credit[n, t]) ** 2

        return _scored_sum(batch, weight, error)

    return Oracle(credit=credit, loss=loss, weight=weight)


def _dro_tokens(batch: Batch, credit: np.ndarray, tau: float, step_of: np.ndarray | None) -> Oracle:
    weight = aggregate.token_mean(batch.mask, step_of=step_of)

    def objective(n, t, logp, held):
        return credit[n, t] * logp[n, t] - tau * pieces.k2(logp[n, t] - batch.logp_old[n, t])

    return Oracle(credit=credit, loss=surrogate_pieces.surrogate(weight, objective), weight=weight)


def _scored_sum(batch: Batch, weight: np.ndarray, error: Callable[[int, int], float]) -> float:
    """`sum weight * error` over the tokens of scored rows."""
    return methods._weighted_sum(np.where(batch.scored[:, None], weight, 0.0), error)
