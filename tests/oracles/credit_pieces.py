"""Reward-side formulas of the newer methods, one by one, on a `Batch` and per-row numbers `[N]`.

The conventions of `pieces.py` hold: a row that is not scored is in no statistic and gets 0.
"""

import itertools
import math

import numpy as np

from . import pieces
from .batch import Batch

# ------------------------------------------------------------------ baselines and scales


def informative_scale(batch: Batch, outcome: np.ndarray) -> float:
    """`B / (B - M)`, M of the B scored rows being in groups that give no gradient (GPG)."""
    rows = len(np.flatnonzero(batch.scored))
    informative = len(pieces._centred_rows(batch, outcome))
    return rows / informative if informative else 1.0


def optimal_token_baseline(
    batch: Batch,
    *,
    compacted: bool = True,
    zero_tail: bool = True,
    importance_cap: float | None = None,
    eps: float = 1e-8,
) -> np.ndarray:
    """`G_ij - b_j` `[N, T]`, `b_j = sum_i G_ij W_ij / (sum_i W_ij + eps)` (OTB, 2602.07078).

    `W_ij` sums `w = 1 - 2 p + sum_v p_v^2` of the row's action tokens up to place j, each times
    `min(old / sampler, importance_cap)^2` if a cap is given. The place is the number of action
    tokens before it (`compacted`), or the distance from the end of the prompt. `zero_tail`: the
    one longest row of a group has no baseline beyond the second longest.
    """
    returns = pieces.reward_to_go(batch, 1.0)
    energy = _cumulative_energy(batch, importance_cap)
    out = np.zeros(batch.mask.shape)
    for group in _groups(batch):
        members = batch.members(group)
        if len(members) < 2:
            continue
        places = {n: _places(batch, n, compacted) for n in members}
        extent = sorted(max(places[n], default=-1) + 1 for n in members)
        for n in members:
            for j, t in places[n].items():
                met = [(m, places[m][j]) for m in members if j in places[m]]
                top = sum(returns[at] * energy[at] for at in met)
                baseline = top / (sum(energy[at] for at in met) + eps)
                if zero_tail and j >= extent[-2]:
                    baseline = 0.0
                out[n, t] = returns[n, t] - baseline
    return out


def normalised_credit(batch: Batch, ddof: int, eps: float) -> np.ndarray:
    """GRPO's `(R_i - mean_g R) / (std_g R + eps)` on each row's tokens `[N, T]`."""
    outcome = pieces.outcome_return(batch)
    return pieces.on_tokens(batch, pieces.group_normalised(batch, outcome, ddof=ddof, eps=eps))


def beta_normalised(
    batch: Batch, outcome: np.ndarray, *, low: float = 0.0, high: float = 1.0
) -> np.ndarray:
    """`(R - p_g) min(1 / Beta(p_g; alpha, beta), 1e6)` `[N]`, `R` mapped to [0, 1] (BNPO).

    `p_g` is the group's mean; `m` and `v` (ddof 1) are over the means of all groups with a scored
    row; `s = m (1 - m) / v - 1`, `alpha = max(1, 1 + s m / 3)`, `beta = max(1, 1 + s (1 - m) / 3)`
    (2506.02864). With one group, or equal means, the weight is 1.
    """
    scaled = (outcome - low) / (high - low)
    centred = pieces.group_mean_baseline(batch, scaled)
    means = {}
    for group in _groups(batch):
        if batch.members(group):
            means[group] = pieces._mean([scaled[n] for n in batch.members(group)])
    if any(p < -1e-9 or p > 1 + 1e-9 for p in means.values()):
        raise ValueError("beta_normalised needs outcomes whose group means lie in [low, high]")
    m, v = pieces._mean(list(means.values())), pieces._var(list(means.values()), 1)
    s = m * (1 - m) / v - 1 if v > 1e-12 else 0.0
    alpha, beta = max(1.0, 1 + s * m / 3), max(1.0, 1 + s * (1 - m) / 3)
    out = np.zeros(len(outcome))
    for n in np.flatnonzero(centred):
        density = _beta_density(means[batch.group[n]], alpha, beta)
        out[n] = centred[n] / max(density, 1e-6)
    return out


def decoupled_normalised(
    batch: Batch,
    weights: dict[str, float] | None = None,
    *,
    ddof: int = 1,
    eps: float = 1e-6,
) -> np.ndarray:
    """`sum_k w_k (r_k - mean_g r_k) / (std_g r_k + eps)` `[N]` (GDPO, 2601.05242)."""
    out = np.zeros(len(batch.group))
    for name, part in batch.parts.items():
        values = pieces.outcome_return(batch, part)
        weight = 1.0 if weights is None else weights[name]
        out += weight * pieces.group_normalised(batch, values, ddof=ddof, eps=eps)
    return out


# ------------------------------------------------------------------ Pass@k


def best_minus_second(
    batch: Batch, outcome: np.ndarray, *, scale: bool = False, ddof: int = 1, eps: float = 1e-6
) -> np.ndarray:
    """`max_g R - max_{j != i} R_j` `[N]`: 0 but for the one best of its group (2503.19595).

    `scale` divides by the group's standard deviation plus `eps`.
    """
    std = pieces.group_std(batch, outcome, ddof=ddof)
    out = np.zeros(len(outcome))
    for n in pieces._centred_rows(batch, outcome):
        members = batch.members(batch.group[n])
        best = max(outcome[j] for j in members)
        out[n] = best - max(outcome[j] for j in members if j != n)
        if scale:
            out[n] /= std[n] + eps
    return out


def analytic_pass_at_k(
    batch: Batch, correct: np.ndarray, k: int, *, eps: float = 1e-6
) -> np.ndarray:
    """Mean group-normalised credit over the k-subsets that hold the response (2508.10751).

    With N scored members of which c are correct, `rho = 1 - C(N-c, k) / C(N, k)` and
    `sigma = sqrt(rho (1 - rho))`: correct `(1 - rho) / (sigma + eps)`, wrong
    `(1 - rho - C(N-c-1, k-1) / C(N-1, k-1)) / (sigma + eps)`. A group smaller than k gets 0.
    """
    out = np.zeros(len(correct))
    for n in np.flatnonzero(batch.scored):
        members = batch.members(batch.group[n])
        size, right = len(members), sum(bool(correct[j]) for j in members)
        if size < max(k, 2) or right == 0 or right == size:
            continue
        rho = 1.0 - math.comb(size - right, k) / math.comb(size, k)
        failed = 0.0
        if not correct[n]:
            failed = math.comb(size - right - 1, k - 1) / math.comb(size - 1, k - 1)
        out[n] = (1.0 - rho - failed) / (math.sqrt(rho * (1.0 - rho)) + eps)
    return out


def max_at_k(batch: Batch, outcome: np.ndarray, k: int) -> np.ndarray:
    """`s_i = 1/C(n, k) sum over k-subsets I with i of (max_I R - max_{I without i} R)` `[N]`.

    PKPO's `s^(loo-1)` (2505.15201, eq. 33), whose gradient is the sum over the group, not the
    mean. Needs `k >= 2`; a group with fewer than k scored members gets 0.
    """
    if k < 2:
        raise ValueError("max_at_k needs k >= 2: without i a subset of one is empty")
    out = np.zeros(len(outcome))
    for n in np.flatnonzero(batch.scored):
        members = batch.members(batch.group[n])
        if len(members) < k:
            continue
        for others in itertools.combinations([j for j in members if j != n], k - 1):
            rest = max(outcome[j] for j in others)
            out[n] += max(rest, outcome[n]) - rest
        out[n] /= math.comb(len(members), k)
    return out


# ------------------------------------------------------------------ memory


def empty_memory(size: int) -> dict[str, np.ndarray]:
    """DCPO's memory of `size` prompts, none met yet."""
    return {name: np.zeros(size) for name in ("n", "mean", "var")}


def smooth_standardised(
    batch: Batch, outcome: np.ndarray, memory: dict[str, np.ndarray], *, ddof: int = 1
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """DCPO's smoothed advantage `[N]` and the memory after this batch (2509.02333).

    For a prompt's n-th group: `mu_n = ((n-1) mu + m) / n` and
    `v_n = ((n-1) v + s^2 + (n-1)/n (m - mu)^2) / n`; `A_new` and `A_total` standardise with
    `(m, s)` and `(mu_n, v_n)`, 0 where the deviation is 0 (below 1e-6). Of
    `A_new/n + (1-1/n) A_total` and `A_total/n + (1-1/n) A_new` the smaller in size is taken. A
    group with fewer than two scored members has credit 0 and leaves no trace; a row of prompt -1
    has no past.
    """
    credit, after = np.zeros(len(outcome)), {k: v.copy() for k, v in memory.items()}
    for group in _groups(batch):
        members = batch.members(group)
        if len(members) < 2:
            continue
        values, prompt = [outcome[j] for j in members], batch.prompt[members[0]]
        mean, var = pieces._mean(values), pieces._var(values, ddof)
        past = {name: 0.0 if prompt < 0 else memory[name][prompt] for name in memory}
        n = past["n"] + 1.0
        total_mean = ((n - 1) * past["mean"] + mean) / n
        drift = (n - 1) / n * (mean - past["mean"]) ** 2
        total_var = ((n - 1) * past["var"] + var + drift) / n
        for j in members:
            new = _standardised(outcome[j], mean, var)
            total = _standardised(outcome[j], total_mean, total_var)
            towards_total = new / n + (1 - 1 / n) * total
            towards_new = total / n + (1 - 1 / n) * new
            smaller = abs(towards_new) < abs(towards_total)
            credit[j] = towards_new if smaller else towards_total
        if prompt >= 0:
            after["n"][prompt], after["mean"][prompt] = n, total_mean
            after["var"][prompt] = total_var
    return credit, after


# ------------------------------------------------------------------ critic


def length_adaptive_lambda(length: int, alpha: float) -> float:
    """`max(0, 1 - 1 / (alpha L))`, 0 for an empty row (VAPO, 2504.05118)."""
    return max(0.0, 1.0 - 1.0 / (alpha * length)) if length > 0 else 0.0


def decoupled_gae(
    batch: Batch,
    reward: np.ndarray,
    *,
    gamma: float,
    policy_lam: np.ndarray,
    critic_lam: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Advantages with a lambda per row `[N]`, returns `A + V` with the critic's lambda."""
    advantage = np.zeros(batch.mask.shape)
    for n in range(len(advantage)):
        advantage[n] = pieces.gae(batch, reward, gamma=gamma, lam=float(policy_lam[n]))[0][n]
    return advantage, pieces.gae(batch, reward, gamma=gamma, lam=critic_lam)[1]


# ------------------------------------------------------------------ helpers


def correct_rows(batch: Batch, *, above: float = 0.5) -> np.ndarray:
    """bool[N]: scored rows whose outcome exceeds `above`."""
    return batch.scored & (pieces.outcome_return(batch) > above)


def rows_only(keep: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """`keep` bool[N, T] with only the given rows bool[N]."""
    return keep & rows[:, None]


def _groups(batch: Batch) -> list[int]:
    return sorted({int(g) for g in batch.group if g >= 0})


def _places(batch: Batch, n: int, compacted: bool) -> dict[int, int]:
    """{place in the response: position in the row} of the action tokens."""
    if compacted:
        return dict(enumerate(batch.actions(n)))
    return {t - int(batch.prompt_length[n]): t for t in batch.actions(n)}


def _cumulative_energy(batch: Batch, cap: float | None) -> np.ndarray:
    out = np.zeros(batch.mask.shape)
    for n in range(len(out)):
        total = 0.0
        for t in batch.actions(n):
            w = 1.0 - 2.0 * math.exp(batch.logp_old[n, t]) + batch.sum_prob_sq[n, t]
            if cap is not None:
                w *= pieces.truncated_is(batch.logp_old[n, t] - batch.logp_sampler[n, t], cap) ** 2
            total += w
            out[n, t] = total
    return out


def _beta_density(p: float, alpha: float, beta: float) -> float:
    log_norm = math.lgamma(alpha) + math.lgamma(beta) - math.lgamma(alpha + beta)
    return p ** (alpha - 1) * (1 - p) ** (beta - 1) / math.exp(log_norm)


def _standardised(value: float, mean: float, var: float) -> float:
    return (value - mean) / math.sqrt(var) if var > 1e-12 else 0.0
