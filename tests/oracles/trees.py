"""Rows of a group as the leaves of a tree of shared prefixes; conventions as in `methods.py`.

A row's path is the sequence of node labels along its actions. A token of a node that m rows of the
group pass through weighs `1 / m` in each (`share`): every count of tokens then counts it as `1/m`,
so that a shared token counts once however many rows repeat it. Counts of rows are unchanged.
"""

import math

import numpy as np

from . import aggregate, credit_pieces, methods, pieces
from .batch import Batch
from .methods import Oracle

# ------------------------------------------------------------------ pieces


def path(batch: Batch, n: int) -> tuple[int, ...]:
    """The distinct node labels along row n, in order."""
    labels = [int(batch.node[n, t]) for t in batch.actions(n)]
    return tuple(dict.fromkeys(labels))


def below(batch: Batch, group: int, prefix: tuple[int, ...]) -> list[int]:
    """All rows of the group whose path begins with `prefix`, scored or not."""
    rows = [n for n in range(len(batch.group)) if batch.group[n] == group]
    return [n for n in rows if path(batch, n)[: len(prefix)] == prefix]


def shares(batch: Batch) -> np.ndarray:
    """`1 / m` `[N, T]` on actions, m the rows of the group that pass through the token's node."""
    out = np.zeros(batch.mask.shape)
    for n in range(len(out)):
        for t in batch.actions(n):
            out[n, t] = 1.0 / len(below(batch, batch.group[n], _prefix(batch, n, t)))
    return out


def shared_token_mean(
    keep: np.ndarray, share: np.ndarray, *, step_of: np.ndarray | None = None
) -> np.ndarray:
    """`share / sum of the kept shares`: the mean over distinct tokens."""
    weight = np.zeros(keep.shape)
    for rows in aggregate._steps(keep, step_of):
        total = sum(share[n, t] for n in rows for t in aggregate._kept(keep, n))
        for n in rows:
            for t in aggregate._kept(keep, n):
                weight[n, t] = share[n, t] / total
    return weight


def shared_sequence_mean(
    keep: np.ndarray, share: np.ndarray, *, step_of: np.ndarray | None = None
) -> np.ndarray:
    """`share / (N * the row's kept shares)`: the mean over rows of a mean weighted by `share`."""
    weight = np.zeros(keep.shape)
    for rows in aggregate._steps(keep, step_of):
        for n in rows:
            length = sum(share[n, t] for t in aggregate._kept(keep, n))
            for t in aggregate._kept(keep, n):
                weight[n, t] = share[n, t] / length / len(rows)
    return weight


def node_value(
    batch: Batch, outcome: np.ndarray, group: int, prefix: tuple[int, ...]
) -> float | None:
    """The mean of the children's values, from the leaves up; None where no scored row passes.

    Children of a node are the nodes that follow it and, as leaves worth their outcome, the scored
    rows that end in it.
    """
    scored = [n for n in below(batch, group, prefix) if batch.scored[n]]
    values = [outcome[n] for n in scored if path(batch, n) == prefix]
    for label in _following(batch, scored, prefix):
        values.append(node_value(batch, outcome, group, (*prefix, label)))
    return pieces._mean(values) if values else None


def sibling_credit(
    batch: Batch, outcome: np.ndarray, *, eps: float = 1e-6, scale: str = "bernoulli"
) -> np.ndarray:
    """`(v - mu) / (sigma + eps)` `[N, T]` of the token's node among the nodes after its parent.

    `mu` is the mean of these siblings' values and `sigma = sqrt(mu (1 - mu))`, for outcomes in
    [0, 1] (TreeRPO, 2506.05183); `scale="std"` has the siblings' own deviation, `ddof = 1`. 0
    where fewer than two siblings have a value, or all have the same.
    """
    out = np.zeros(batch.mask.shape)
    for n in np.flatnonzero(batch.scored):
        for t in batch.actions(n):
            prefix = _prefix(batch, n, t)
            siblings = _sibling_values(batch, outcome, batch.group[n], prefix[:-1])
            if not _spread(siblings):
                continue
            mu = pieces._mean(siblings)
            sigma = math.sqrt(max(0.0, mu * (1.0 - mu)))
            if scale == "std":
                sigma = pieces._std(siblings, 1)
            value = node_value(batch, outcome, batch.group[n], prefix)
            out[n, t] = (value - mu) / (sigma + eps)
    return out


def level_credit(
    batch: Batch, outcome: np.ndarray, *, weighting: str = "average", drop_flat: bool = False
) -> np.ndarray:
    """TreePO's mean over levels of `R_i - mean of the sub-group` `[N]` (2508.17445).

    The whole group is always a level; every node on the path that two scored rows or more pass
    through is another. `weighting` is `"average"`, or `"size"`: in proportion to the number of
    rows. `drop_flat` leaves out nodes whose rows agree.
    """
    out = np.zeros(len(outcome))
    for n in pieces._centred_rows(batch, outcome):
        terms = []
        for depth in range(len(path(batch, n)) + 1):
            rows = below(batch, batch.group[n], path(batch, n)[:depth])
            values = [outcome[j] for j in rows if batch.scored[j]]
            if depth > 0 and (len(values) < 2 or (drop_flat and not _spread(values))):
                continue
            size = {"average": 1.0, "size": float(len(values))}[weighting]
            terms.append((size, outcome[n] - pieces._mean(values)))
        out[n] = sum(s * a for s, a in terms) / sum(s for s, _ in terms)
    return out


def shared_prefix_mean(batch: Batch, credit: np.ndarray) -> np.ndarray:
    """On each token of scored rows, the mean of `credit` `[N]` of the scored rows that share it."""
    out = np.zeros(batch.mask.shape)
    for n in np.flatnonzero(batch.scored):
        for t in batch.actions(n):
            rows = below(batch, batch.group[n], _prefix(batch, n, t))
            out[n, t] = pieces._mean([credit[j] for j in rows if batch.scored[j]])
    return out


# ------------------------------------------------------------------ methods


def treerpo(
    batch: Batch,
    *,
    clip: tuple[float, float] = (0.2, 0.2),
    eps: float = 1e-6,
    scale: str = "bernoulli",
    drop: bool = True,
    share: bool = True,
    step_of: np.ndarray | None = None,
) -> Oracle:
    """Token-mean PPO clip on `sibling_credit` (2506.05183).

    `drop` leaves tokens of nodes without a sibling of another value out of numerator and
    denominator.
    """
    outcome = pieces.outcome_return(batch)
    credit = sibling_credit(batch, outcome, eps=eps, scale=scale)
    keep = batch.mask.copy()
    if drop:
        for n in range(len(keep)):
            for t in batch.actions(n):
                parent = _prefix(batch, n, t)[:-1]
                keep[n, t] = _spread(_sibling_values(batch, outcome, batch.group[n], parent))
    weight = _token_mean(batch, keep, share, step_of)
    return Oracle(
        credit=credit, loss=methods._clip_loss(batch, credit, weight, clip), weight=weight
    )


def treepo(
    batch: Batch,
    *,
    weighting: str = "average",
    drop_flat: bool = False,
    clip: tuple[float, float] = (0.2, 0.28),
    dual_clip: float | None = 10.0,
    ddof: int = 1,
    eps: float = 1e-8,
    share: bool = True,
    step_of: np.ndarray | None = None,
) -> Oracle:
    """Token-mean PPO clip on `level_credit`, whitened over the tokens of all rows (2508.17445).

    The whitening counts a token once per row even with `share`: its credit differs by row.
    """
    outcome = pieces.outcome_return(batch)
    sequence = level_credit(batch, outcome, weighting=weighting, drop_flat=drop_flat)
    credit = pieces.whiten_tokens(batch, pieces.on_tokens(batch, sequence), ddof=ddof, eps=eps)
    weight = _token_mean(batch, batch.mask, share, step_of)
    cap = math.inf if dual_clip is None else dual_clip

    def loss(logp, value=None, entropy=None, *, detached_logp=None):
        def objective(n, t):
            ratio = pieces.token_ratio(logp[n, t], batch.logp_old[n, t])
            return pieces.dual_clipped(ratio, credit[n, t], *clip, cap)

        return -methods._weighted_sum(weight, objective)

    return Oracle(credit=credit, loss=loss, weight=weight)


def arpo(
    batch: Batch,
    *,
    attribution: str = "soft",
    clip: tuple[float, float] = (0.2, 0.2),
    beta: float = 0.0,
    ddof: int = 1,
    eps: float = 1e-6,
    share: bool = True,
    step_of: np.ndarray | None = None,
) -> Oracle:
    """GRPO on a tree (2507.19849): each row's own credit (`"soft"`), or `shared_prefix_mean`.

    With `share=False` the soft form is `methods.grpo`.
    """
    soft = credit_pieces.normalised_credit(batch, ddof, eps)
    sequence = pieces.group_normalised(batch, pieces.outcome_return(batch), ddof=ddof, eps=eps)
    credit = {"soft": soft, "hard": shared_prefix_mean(batch, sequence)}[attribution]
    if share:
        weight = shared_sequence_mean(batch.mask, shares(batch), step_of=step_of)
    else:
        weight = aggregate.sequence_mean(batch.mask, step_of=step_of)
    policy = methods._clip_loss(batch, credit, weight, clip)

    def loss(logp, value=None, entropy=None, *, detached_logp=None):
        def penalty(n, t):
            return beta * pieces.k3(logp[n, t] - batch.logp_ref[n, t])

        return policy(logp) + methods._weighted_sum(weight, penalty)

    return Oracle(credit=credit, loss=loss, weight=weight)


# ------------------------------------------------------------------ helpers


def _prefix(batch: Batch, n: int, t: int) -> tuple[int, ...]:
    """Row n's path up to and with the node of token t."""
    whole = path(batch, n)
    return whole[: whole.index(int(batch.node[n, t])) + 1]


def _following(batch: Batch, rows: list[int], prefix: tuple[int, ...]) -> list[int]:
    """Labels of the nodes that follow `prefix` on the given rows."""
    longer = [path(batch, n) for n in rows if len(path(batch, n)) > len(prefix)]
    return sorted({p[len(prefix)] for p in longer})


def _sibling_values(
    batch: Batch, outcome: np.ndarray, group: int, parent: tuple[int, ...]
) -> list[float]:
    """Values of the nodes that follow `parent`; rows that end in it are none of them."""
    rows = [n for n in below(batch, group, parent) if batch.scored[n]]
    return [
        node_value(batch, outcome, group, (*parent, label))
        for label in _following(batch, rows, parent)
    ]


def _spread(values: list[float]) -> bool:
    return len(values) >= 2 and max(values) > min(values)


def _token_mean(
    batch: Batch, keep: np.ndarray, share: bool, step_of: np.ndarray | None
) -> np.ndarray:
    if share:
        return shared_token_mean(keep, shares(batch), step_of=step_of)
    return aggregate.token_mean(keep, step_of=step_of)
