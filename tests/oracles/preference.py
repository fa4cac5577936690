"""Losses on pairs of a group's rows; conventions as in `methods.py`.

A pair is the best-scored and the worst-scored row of a group, both with an action. Of equal scores
the first in row order is taken; a group whose scores all agree has no pair, and of more than two
members the others are unused. `h = x_best - x_worst`, `x_i = sum_t (l - l_ref)`.
"""

import math
from collections.abc import Callable

import numpy as np

from . import aggregate, pieces
from .batch import Batch
from .methods import Oracle
from .regression import log_ratio


def pairs(batch: Batch) -> list[tuple[int, int]]:
    """(best, worst) of each group that has a pair."""
    outcome = pieces.outcome_return(batch)
    out = []
    for g in sorted({int(g) for g in batch.group if g >= 0}):
        rows = [n for n in batch.members(g) if batch.actions(n)]
        if rows:
            best, worst = (pick(rows, key=lambda n: outcome[n]) for pick in (max, min))
            if outcome[best] > outcome[worst]:
                out.append((best, worst))
    return out


def sigmoid_loss(h: float, beta: float) -> float:
    """`-log sigmoid(beta h)` (DPO, 2305.18290)."""
    return math.log1p(math.exp(-beta * h))


def square_loss(h: float, tau: float) -> float:
    """`(h - 1 / (2 tau))^2` (IPO, 2310.12036)."""
    return (h - 1.0 / (2.0 * tau)) ** 2


def dpo(batch: Batch, *, beta: float = 0.1, step_of: np.ndarray | None = None) -> Oracle:
    """`L = mean over pairs of -log sigmoid(beta h)`."""
    return _paired(batch, lambda h: sigmoid_loss(h, beta), step_of)


def ipo(batch: Batch, *, tau: float = 0.1, step_of: np.ndarray | None = None) -> Oracle:
    """`L = mean over pairs of (h - 1 / (2 tau))^2`, `h` summed over tokens."""
    return _paired(batch, lambda h: square_loss(h, tau), step_of)


def online_dpo(
    batch: Batch,
    *,
    beta: float = 0.1,
    squared: bool = False,
    step_of: np.ndarray | None = None,
) -> Oracle:
    """`dpo`, or with `squared` `ipo`, on pairs the policy has just sampled (2402.04792).

    The paper samples two; of more the best and the worst are taken.
    """
    return (
        ipo(batch, tau=beta, step_of=step_of) if squared else dpo(batch, beta=beta, step_of=step_of)
    )


def _paired(
    batch: Batch, of_margin: Callable[[float], float], step_of: np.ndarray | None
) -> Oracle:
    """The mean of `of_margin(h)` over each step's pairs; `credit` is 1 and -1 on their rows."""
    credit, weight = np.zeros(batch.mask.shape), np.zeros(batch.mask.shape)
    share: dict[tuple[int, int], float] = {}
    for rows in aggregate._steps(batch.mask, step_of):
        here = [(best, worst) for best, worst in pairs(batch) if best in rows]
        for pair in here:
            share[pair] = 1.0 / len(here)
            for n, sign in zip(pair, (1.0, -1.0), strict=True):
                credit[n, batch.actions(n)] = sign
                weight[n, batch.actions(n)] = share[pair] / batch.length[n]

    def loss(logp, value=None, entropy=None, *, detached_logp=None):
        total = 0.0
        for (best, worst), part in share.items():
            x = [log_ratio(batch, n, logp, batch.logp_ref) for n in (best, worst)]
            total += part * of_margin(x[0] - x[1])
        return float(total)

    return Oracle(credit=credit, loss=loss, weight=weight)
