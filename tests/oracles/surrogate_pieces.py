"""Trajectory-side formulas of the newer methods, token by token, and the loop that sums them."""

import math
from collections.abc import Callable

import numpy as np

from . import methods, pieces


def surrogate(weight: np.ndarray, objective: Callable[..., float]) -> Callable[..., float]:
    """`loss = -sum weight * objective(n, t, logp, held)`; `held` is under a stop-gradient."""

    def loss(logp, value=None, entropy=None, *, detached_logp=None):
        held = logp if detached_logp is None else detached_logp
        return -methods._weighted_sum(weight, lambda n, t: objective(n, t, logp, held))

    return loss


def weighted_logp(
    credit: np.ndarray, weight: np.ndarray, factor: Callable[..., float] | None = None
) -> Callable[..., float]:
    """The loss of `sg[factor(n, t, held)] A l`; without `factor`, of `A l`."""

    def objective(n, t, logp, held):
        w = 1.0 if factor is None else factor(n, t, held)
        return w * credit[n, t] * logp[n, t]

    return surrogate(weight, objective)


# ------------------------------------------------------------------ sequence and soft weights


def log_clipped(shift: float, credit: float, low: float, high: float) -> float:
    """`l - l_old` cut to `[-low, high]` only where that lowers the objective (GMPO, 2507.20673)."""
    cut = pieces._clamp(shift, -low, high)
    return min(shift, cut) if credit >= 0 else max(shift, cut)


def soft_gate(ratio: float, tau: float) -> float:
    """`4/tau sigmoid(tau (r - 1))`, whose slope at 1 is 1 (SAPO, 2511.20347)."""
    return 4.0 / tau / (1.0 + math.exp(-tau * (ratio - 1.0)))


def gamma_weight(log_ratio: float, k: float, lam: float) -> float:
    """`exp(lam) W^k exp(-lam W)`, 1 at `W = 1` and largest at `W = k / lam` (VESPO, 2602.10693)."""
    return math.exp(lam + k * log_ratio - lam * math.exp(log_ratio))


# ------------------------------------------------------------------ trust regions


def aspo_objective(
    logp: float,
    held: float,
    old: float,
    credit: float,
    *,
    clip: tuple[float, float],
    cap: float,
) -> float:
    """ASPO (2510.06062) in three steps, to be maximised.

    The PPO clip blocks what it always blocks; an open token has gradient weight `1/r` where
    `A > 0` and `r` where `A < 0`; a weight beyond `cap` is held at it while `l` stays free.
    """
    r = math.exp(held - old)
    if credit == 0.0:
        return 0.0
    if credit > 0.0:
        if r > 1.0 + clip[1]:
            return credit / (1.0 + clip[1])
        return credit * cap * logp if 1.0 / r > cap else credit * math.exp(logp - held) / r
    if r < 1.0 - clip[0]:
        return credit * (1.0 - clip[0])
    return credit * cap * logp if r > cap else credit * math.exp(logp - old)


def dcpo_bounds(old: float, low: float, high: float, r_max: float) -> tuple[float, float]:
    """Ratios r with `|r - 1| r q = low` below and `high` above 1, `q = exp(l_old)` (2509.02333)."""
    q = math.exp(old)
    below = 0.5 + 0.5 * math.sqrt(max(0.0, 1.0 - 4.0 * low / q))
    return below, min(0.5 + 0.5 * math.sqrt(1.0 + 4.0 * high / q), r_max)


def tv_open(logp: float, old: float, credit: float, low: float, high: float) -> bool:
    """Whether the sampled token's probability has moved less than its bound (DPPO, 2602.04879)."""
    moved = math.exp(logp) - math.exp(old)
    return moved <= high if credit > 0 else moved >= -low


def kl_open(logp: float, old: float, credit: float, low: float, high: float) -> bool:
    """As `tv_open`, by the divergence of the two-outcome distributions {token, any other}."""
    p, q = math.exp(logp), math.exp(old)
    kl = q * (old - logp) + (1.0 - q) * math.log((1.0 - q + 1e-8) / (1.0 - p + 1e-8))
    return (kl <= high or p <= q) if credit > 0 else (kl <= low or p >= q)


def positive_share(ratio: np.ndarray, credit: np.ndarray, prob: np.ndarray, low, high) -> float:
    """BAPO's share of the positive tokens in the clipped objective, in size (2510.18927).

    Each token counts `prob * |min(r A, clip(r, low, high) A)|`; arrays hold the step's tokens.
    """
    size = [_bapo_size(r, a, low, high) * p for r, a, p in zip(ratio, credit, prob, strict=True)]
    positive = sum(s for s, a in zip(size, credit, strict=True) if a > 0)
    return positive / sum(size) if sum(size) > 0 else math.inf


def positive_to_negative(
    ratio: np.ndarray, credit: np.ndarray, prob: np.ndarray, low, high
) -> float:
    """What the authors' code compares instead: positive over negative, without `prob`."""
    size = [_bapo_size(r, a, low, high) for r, a in zip(ratio, credit, strict=True)]
    positive = sum(s for s, a in zip(size, credit, strict=True) if a > 0)
    negative = sum(size) - positive
    return positive / (negative + 1e-8) if negative > 0 else math.inf


def _bapo_size(ratio: float, credit: float, low: float, high: float) -> float:
    return abs(min(ratio * credit, pieces._clamp(ratio, low, high) * credit))


def search_bounds(
    contribution: Callable[[float, float], float],
    *,
    target: float,
    low: tuple[float, float, float],
    high: tuple[float, float, float],
    high_first: bool,
) -> tuple[float, float]:
    """Raise one bound, then the other, until `contribution(low, high)` reaches the target.

    Each bound is `(start, limit, step)`; the last step is cut short at the limit.
    """
    bounds = {"low": low[0], "high": high[0]}
    limit, step = {"low": low[1], "high": high[1]}, {"low": low[2], "high": high[2]}
    for name in ("high", "low") if high_first else ("low", "high"):
        while contribution(**bounds) < target and bounds[name] < limit[name]:
            bounds[name] = min(bounds[name] + step[name], limit[name])
    return bounds["low"], bounds["high"]


# ------------------------------------------------------------------ choosing tokens


def covariances(
    credit: np.ndarray, held: np.ndarray, places: list[tuple[int, int]]
) -> dict[tuple[int, int], float]:
    """`(A - mean A) (l - mean l)` at each place, the means over the places (2505.22617)."""
    mean_credit = pieces._mean([credit[at] for at in places])
    mean_logp = pieces._mean([held[at] for at in places])
    return {at: (credit[at] - mean_credit) * (held[at] - mean_logp) for at in places}


def quantile(values: list[float], share: float) -> float:
    """The value below which `share` of the values lie, interpolated between neighbours."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def entropy_controller(
    coefficient: float,
    measured: float,
    *,
    target: float = 0.2,
    step: float = 0.005,
    low: float = 0.0,
    high: float = 1.0,
) -> float:
    """The coefficient after a step at which the mean entropy was `measured` (2505.22312)."""
    moved = coefficient + step if measured <= target else coefficient - step
    return pieces._clamp(moved, low, high)


# ------------------------------------------------------------------ off-policy weights


def tapered(log_ratio: float, outcome: float) -> float:
    """1 for `R >= 0`, else `clip(pi(y) / mu(y), 0, 1)` of the whole response (TOPR, 2503.14286)."""
    return 1.0 if outcome >= 0 else min(math.exp(log_ratio), 1.0)


def rec_open(
    ratio: float,
    credit: float,
    mode: str,
    clip: tuple[float, float],
    outer: tuple[float, float],
) -> bool:
    """Whether a token has a gradient under a clip mode of 2509.24203 (equality is open)."""
    inside = 1.0 - clip[0] <= ratio <= 1.0 + clip[1]
    if mode == "none":
        return True
    if mode == "two_side":
        return inside
    if mode == "one_side":
        return ratio <= 1.0 + clip[1] if credit >= 0 else ratio >= 1.0 - clip[0]
    if mode == "ring":
        far = ratio <= 1.0 - outer[0] if credit >= 0 else ratio >= 1.0 + outer[1]
        return inside or far
    raise ValueError(f"unknown clip mode {mode!r}")
