"""Token weights: how much each token's objective counts in `loss = -sum(weight * objective)`.

Every function takes `keep` bool[N, T], the tokens that take part, and returns float64 `[N, T]`,
zero off `keep`. A row without a kept token is not a row: it enters no denominator. With `step_of`
int[N] the denominators are those of each optimiser step by itself; without it the batch is one
step. Sources: the normalisers of the papers' objectives, per function below.
"""

import numpy as np


def token_mean(keep: np.ndarray, *, step_of: np.ndarray | None = None) -> np.ndarray:
    """`1 / sum_i L_i` for every token (DAPO, 2503.14476, over the whole step)."""
    weight = np.zeros(keep.shape)
    for rows in _steps(keep, step_of):
        tokens = 0
        for n in rows:
            tokens += len(_kept(keep, n))
        for n in rows:
            for t in _kept(keep, n):
                weight[n, t] = 1.0 / tokens
    return weight


def sequence_mean(keep: np.ndarray, *, step_of: np.ndarray | None = None) -> np.ndarray:
    """`1 / (N L_i)`: the mean over rows of each row's token mean (GRPO, 2402.03300)."""
    weight = np.zeros(keep.shape)
    for rows in _steps(keep, step_of):
        for n in rows:
            for t in _kept(keep, n):
                weight[n, t] = 1.0 / len(rows) / len(_kept(keep, n))
    return weight


def sequence_sum_mean(keep: np.ndarray, *, step_of: np.ndarray | None = None) -> np.ndarray:
    """`1 / N`: the mean over rows of each row's token sum (the log-probability of a sequence)."""
    weight = np.zeros(keep.shape)
    for rows in _steps(keep, step_of):
        for n in rows:
            for t in _kept(keep, n):
                weight[n, t] = 1.0 / len(rows)
    return weight


def sequence_mean_sum(keep: np.ndarray, *, step_of: np.ndarray | None = None) -> np.ndarray:
    """`1 / L_i`: the sum over rows of each row's token mean (DCPO, 2509.02333)."""
    weight = np.zeros(keep.shape)
    for rows in _steps(keep, step_of):
        for n in rows:
            for t in _kept(keep, n):
                weight[n, t] = 1.0 / len(_kept(keep, n))
    return weight


def constant_length(
    keep: np.ndarray, length: float, *, step_of: np.ndarray | None = None
) -> np.ndarray:
    """`1 / (N length)`: the mean over rows of token sums over a constant (Dr. GRPO, 2503.20783)."""
    weight = np.zeros(keep.shape)
    for rows in _steps(keep, step_of):
        for n in rows:
            for t in _kept(keep, n):
                weight[n, t] = 1.0 / len(rows) / length
    return weight


def turn_mean(
    keep: np.ndarray, turn: np.ndarray, *, step_of: np.ndarray | None = None
) -> np.ndarray:
    """`1 / (K_total |turn|)`: the mean over all turns of all rows of each turn's token mean."""
    weight = np.zeros(keep.shape)
    for rows in _steps(keep, step_of):
        turns: dict[tuple[int, int], list[int]] = {}
        for n in rows:
            for t in _kept(keep, n):
                turns.setdefault((n, int(turn[n, t])), []).append(t)
        for (n, _), positions in turns.items():
            for t in positions:
                weight[n, t] = 1.0 / len(turns) / len(positions)
    return weight


def group_mean(
    keep: np.ndarray,
    group: np.ndarray,
    *,
    ddof: int = 0,
    within: str = "mean",
    step_of: np.ndarray | None = None,
) -> np.ndarray:
    """`1 / (P (G - ddof))` per row: the mean over groups of a group's sum over `G - ddof`.

    GVPO (2504.19599) has `ddof=1`. `G` counts the rows of the group with a kept token. A group
    with `G <= ddof` weighs nothing and is still counted in `P`. `within="mean"` divides a row's
    weight among its tokens (a row quantity written on each of its tokens counts once);
    `within="sum"` gives it to each token.
    """
    weight = np.zeros(keep.shape)
    for rows in _steps(keep, step_of):
        groups = sorted({int(group[n]) for n in rows})
        for g in groups:
            members = [n for n in rows if group[n] == g]
            if len(members) <= ddof:
                continue
            for n in members:
                tokens = _kept(keep, n)
                share = {"mean": 1.0 / len(tokens), "sum": 1.0}[within]
                for t in tokens:
                    weight[n, t] = share / len(groups) / (len(members) - ddof)
    return weight


def token_sum(keep: np.ndarray) -> np.ndarray:
    """`1` for every kept token."""
    weight = np.zeros(keep.shape)
    for n in range(len(keep)):
        for t in _kept(keep, n):
            weight[n, t] = 1.0
    return weight


def _kept(keep: np.ndarray, n: int) -> list[int]:
    return [t for t in range(keep.shape[1]) if keep[n, t]]


def _steps(keep: np.ndarray, step_of: np.ndarray | None) -> list[list[int]]:
    """The rows with a kept token, one list per optimiser step."""
    rows = [n for n in range(len(keep)) if _kept(keep, n)]
    if step_of is None:
        return [rows]
    return [[n for n in rows if step_of[n] == step] for step in sorted({int(s) for s in step_of})]
