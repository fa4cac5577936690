"""The formulas one by one: reward side on arrays, trajectory side on single numbers and rows.

Reward side: functions of a `Batch` (and of per-row numbers `[N]`) without any gradient. A row that
is not scored, and a row whose group has fewer than two scored members where a baseline needs them,
gets 0. Trajectory side: functions of floats, to be called token by token.
"""

import math

import numpy as np

from .batch import Batch

# ------------------------------------------------------------------ reward side: returns


def outcome_return(batch: Batch, reward: np.ndarray | None = None) -> np.ndarray:
    """`R_i = sum_t m_it r_it` `[N]`; a row without actions has what its prompt was given."""
    reward = batch.reward if reward is None else reward
    total = np.zeros(len(batch.group))
    for n in range(len(total)):
        for t in batch.actions(n) or range(reward.shape[1]):
            total[n] += reward[n, t]
    return total


def reward_to_go(batch: Batch, gamma: float, reward: np.ndarray | None = None) -> np.ndarray:
    """`G_it = sum_{s>=t} gamma^k r_is` `[N, T]`, k counting only action tokens between t and s."""
    reward = batch.reward if reward is None else reward
    out = np.zeros(batch.mask.shape)
    for n in range(len(out)):
        actions = batch.actions(n)
        for i, t in enumerate(actions):
            for k, s in enumerate(actions[i:]):
                out[n, t] += gamma**k * reward[n, s]
    return out


def kl_in_reward(batch: Batch, beta: float, estimator=None) -> np.ndarray:
    """`r_it - beta * estimator(l_old - l_ref)` `[N, T]` on action tokens; the default is `k1`."""
    estimator = estimator or k1
    out = batch.reward.copy()
    for n in range(len(out)):
        for t in batch.actions(n):
            out[n, t] -= beta * estimator(batch.logp_old[n, t] - batch.logp_ref[n, t])
    return out


# ------------------------------------------------------------------ reward side: baselines, scales


def group_mean_baseline(batch: Batch, outcome: np.ndarray) -> np.ndarray:
    """`R_i - mean_g R` `[N]` over scored members; 0 in a group with fewer than two of them."""
    out = np.zeros(len(outcome))
    for n in _centred_rows(batch, outcome):
        members = batch.members(batch.group[n])
        out[n] = outcome[n] - sum(outcome[j] for j in members) / len(members)
    return out


def leave_one_out_baseline(batch: Batch, outcome: np.ndarray) -> np.ndarray:
    """`R_i - mean of the others` `[N]` (Kool et al. 2019; RLOO, 2402.14740)."""
    out = np.zeros(len(outcome))
    for n in _centred_rows(batch, outcome):
        others = [j for j in batch.members(batch.group[n]) if j != n]
        out[n] = outcome[n] - sum(outcome[j] for j in others) / len(others)
    return out


def length_weighted_baseline(batch: Batch, outcome: np.ndarray) -> np.ndarray:
    """`R_i - sum_j L_j R_j / sum_j L_j` `[N]` (OPO, 2505.23585)."""
    out = np.zeros(len(outcome))
    for n in _centred_rows(batch, outcome):
        members = batch.members(batch.group[n])
        tokens = sum(batch.length[j] for j in members)
        if tokens > 0:
            out[n] = outcome[n] - sum(batch.length[j] * outcome[j] for j in members) / tokens
    return out


def group_std(batch: Batch, outcome: np.ndarray, *, ddof: int = 1) -> np.ndarray:
    """Standard deviation `[N]` of each row's group; 0 with `ddof` scored members or fewer."""
    out = np.zeros(len(outcome))
    for n in range(len(out)):
        members = batch.members(batch.group[n])
        out[n] = _std([outcome[j] for j in members], ddof)
    return out


def group_normalised(
    batch: Batch, outcome: np.ndarray, *, ddof: int = 1, eps: float = 1e-6
) -> np.ndarray:
    """`(R_i - mean_g R) / (std_g R + eps)` `[N]` (GRPO, 2402.03300)."""
    centred = group_mean_baseline(batch, outcome)
    std = group_std(batch, outcome, ddof=ddof)
    return np.array([centred[n] / (std[n] + eps) for n in range(len(centred))])


def batch_std(batch: Batch, outcome: np.ndarray, *, ddof: int = 1) -> float:
    """Standard deviation of `outcome` over all scored rows of the batch."""
    return _std([outcome[n] for n in range(len(outcome)) if batch.scored[n]], ddof)


def whiten_tokens(
    batch: Batch, credit: np.ndarray, *, ddof: int = 1, eps: float = 1e-8
) -> np.ndarray:
    """`(A - mean) / sqrt(var + eps)` `[N, T]` over the action tokens of all scored rows."""
    where = [(n, t) for n in range(len(credit)) if batch.scored[n] for t in batch.actions(n)]
    values = [credit[n, t] for n, t in where]
    out = np.zeros(credit.shape)
    for n, t in where:
        out[n, t] = (credit[n, t] - sum(values) / len(values)) / math.sqrt(_var(values, ddof) + eps)
    return out


def whiten_sequences(
    batch: Batch, outcome: np.ndarray, *, ddof: int = 1, eps: float = 1e-8
) -> np.ndarray:
    """`(A - mean) / sqrt(var + eps)` `[N]` over all scored rows, each counted once."""
    where = [n for n in range(len(outcome)) if batch.scored[n]]
    values = [outcome[n] for n in where]
    out = np.zeros(len(outcome))
    for n in where:
        out[n] = (outcome[n] - sum(values) / len(values)) / math.sqrt(_var(values, ddof) + eps)
    return out


def remax_baseline(batch: Batch, credit: np.ndarray) -> np.ndarray:
    """`G_it - R(greedy)` `[N, T]` on action tokens of scored rows (ReMax, 2310.10505)."""
    out = np.zeros(credit.shape)
    for n in range(len(out)):
        if batch.scored[n]:
            for t in batch.actions(n):
                out[n, t] = credit[n, t] - batch.greedy_return[n]
    return out


def on_tokens(batch: Batch, sequence: np.ndarray) -> np.ndarray:
    """Write each scored row's number `[N]` on its action tokens `[N, T]`."""
    out = np.zeros(batch.mask.shape)
    for n in range(len(out)):
        if batch.scored[n]:
            for t in batch.actions(n):
                out[n, t] = sequence[n]
    return out


# ------------------------------------------------------------------ reward side: critic


def gae(
    batch: Batch, reward: np.ndarray, *, gamma: float, lam: float
) -> tuple[np.ndarray, np.ndarray]:
    """Advantages and returns `[N, T]` (1506.02438), stepping from action token to action token.

    `delta_t = r_t + gamma V(next) - V_t`, `A_t = delta_t + gamma lam A(next)`, return `A + V`.
    Observations between two action tokens are no time step; after the last action comes
    `bootstrap_value`. Rows that are not scored get 0 in both.
    """
    advantage, returns = np.zeros(batch.mask.shape), np.zeros(batch.mask.shape)
    for n in range(len(advantage)):
        if not batch.scored[n]:
            continue
        next_value, next_advantage = batch.bootstrap_value[n], 0.0
        for t in reversed(batch.actions(n)):
            delta = reward[n, t] + gamma * next_value - batch.value[n, t]
            advantage[n, t] = delta + gamma * lam * next_advantage
            returns[n, t] = advantage[n, t] + batch.value[n, t]
            next_value, next_advantage = batch.value[n, t], advantage[n, t]
    return advantage, returns


# ------------------------------------------------------------------ reward side: shaping, filters


def overlong_penalty(length: int, max_length: float, cache: float) -> float:
    """Soft overlong punishment (DAPO, 2503.14476): 0, then a ramp of width `cache`, then -1."""
    if length <= max_length - cache:
        return 0.0
    if length <= max_length:
        return ((max_length - cache) - length) / cache
    return -1.0


def keep_terminated(batch: Batch, keep: np.ndarray) -> np.ndarray:
    """Truncation filter: `keep` bool[N, T] without the tokens of truncated rows."""
    out = keep.copy()
    for n in range(len(out)):
        if batch.truncated[n]:
            out[n, :] = False
    return out


def keep_spread_groups(batch: Batch, keep: np.ndarray, accuracy: np.ndarray) -> np.ndarray:
    """Dynamic-sampling filter: `keep` without groups whose scored members agree in accuracy."""
    out = keep.copy()
    for n in range(len(out)):
        seen = [accuracy[j] for j in batch.members(batch.group[n])]
        if not seen or max(seen) == min(seen):
            out[n, :] = False
    return out


# ------------------------------------------------------------------ trajectory side: ratios


def token_ratio(logp: float, logp_old: float) -> float:
    """`exp(l - l_old)`."""
    return math.exp(logp - logp_old)


def sequence_ratio_full(batch: Batch, n: int, logp: np.ndarray, logp_old: np.ndarray) -> float:
    """`exp(sum_t (l - l_old))` over the action tokens of row n."""
    return math.exp(sum(logp[n, t] - logp_old[n, t] for t in batch.actions(n)))


def sequence_ratio_geometric(batch: Batch, n: int, logp: np.ndarray, logp_old: np.ndarray) -> float:
    """`exp((1/L_i) sum_t (l - l_old))` over the action tokens of row n (GSPO, 2507.18071)."""
    total = sum(logp[n, t] - logp_old[n, t] for t in batch.actions(n))
    return math.exp(total / len(batch.actions(n)))


def gspo_token_ratio(
    batch: Batch, n: int, t: int, logp: np.ndarray, detached_logp: np.ndarray
) -> float:
    """`sg[s_i] exp(l - sg[l])`: value `s_i`, gradient `s_i grad l_t` (GSPO-token, 2507.18071)."""
    s = sequence_ratio_geometric(batch, n, detached_logp, batch.logp_old)
    return s * math.exp(logp[n, t] - detached_logp[n, t])


# ------------------------------------------------------------------ trajectory side: objectives


def clipped(ratio: float, credit: float, low: float, high: float) -> float:
    """`min(r A, clip(r, 1 - low, 1 + high) A)`, to be maximised (PPO, 1707.06347)."""
    return min(ratio * credit, _clamp(ratio, 1.0 - low, 1.0 + high) * credit)


def dual_clipped(ratio: float, credit: float, low: float, high: float, c: float) -> float:
    """`clipped`, and for `A < 0` never below `c A` (1912.09729)."""
    objective = clipped(ratio, credit, low, high)
    return max(objective, c * credit) if credit < 0 else objective


def ratio_capped(ratio: float, cap: float) -> float:
    """`min(r, cap)`, taken before the clip (two-sided clipping, 2505.07291)."""
    return min(ratio, cap)


def cispo_weight(ratio: float, low: float, high: float) -> float:
    """`clip(r, 1 - low, 1 + high)`, to be held constant (CISPO, 2506.13585)."""
    return _clamp(ratio, 1.0 - low, 1.0 + high)


def truncated_is(log_rho: float, cap: float) -> float:
    """`min(exp(log_rho), cap)`, to be held constant (truncated importance sampling)."""
    return min(math.exp(log_rho), cap)


def masked_is(log_rho: float, low: float, high: float) -> float:
    """`exp(log_rho)` inside `[low, high]`, else 0, to be held constant (IcePop)."""
    rho = math.exp(log_rho)
    return rho if low <= rho <= high else 0.0


# ------------------------------------------------------------------ divergences, other terms


def k1(d: float) -> float:
    """`d = l - l_ref`."""
    return d


def k2(d: float) -> float:
    """`d^2 / 2`."""
    return 0.5 * d * d


def k3(d: float) -> float:
    """`exp(-d) - 1 + d` (Schulman 2020; the estimator of GRPO, 2402.03300)."""
    return math.exp(-d) - 1.0 + d


def k_abs(d: float) -> float:
    """`|d|`."""
    return abs(d)


def value_error(value: float, target: float, old: float, clip: float | None = None) -> float:
    """`0.5 (V - G)^2`, or with `clip` half the worse of it and of `V` clipped around `old`."""
    error = (value - target) ** 2
    if clip is not None:
        error = max(error, (_clamp(value, old - clip, old + clip) - target) ** 2)
    return 0.5 * error


def entropy(logits: list[float]) -> float:
    """`H = -sum_v p_v log p_v` of a softmax, the quantity that an entropy bonus raises."""
    top = max(logits)
    log_z = top + math.log(sum(math.exp(x - top) for x in logits))
    return -sum(math.exp(x - log_z) * (x - log_z) for x in logits)


# ------------------------------------------------------------------ helpers


def _centred_rows(batch: Batch, outcome: np.ndarray) -> list[int]:
    """Scored rows of groups with two scored members or more whose outcomes are not all equal."""
    rows = []
    for n in range(len(outcome)):
        seen = [outcome[j] for j in batch.members(batch.group[n])]
        if batch.scored[n] and len(seen) >= 2 and max(seen) > min(seen):
            rows.append(n)
    return rows


def _clamp(x: float, low: float, high: float) -> float:
    return max(low, min(x, high))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _var(values: list[float], ddof: int) -> float:
    if len(values) <= ddof:
        return 0.0
    mean = sum(values) / len(values)
    return sum((x - mean) ** 2 for x in values) / (len(values) - ddof)


def _std(values: list[float], ddof: int) -> float:
    return math.sqrt(_var(values, ddof))
