"""Corrections for a sampler that is not the trainer: weights from recorded columns only.

ρ = π_old / μ, the trainer's probability at the start of the update over the sampler's, where the
filters of the sampler (top-p, top-k) are undone. The weights are computed once, on the whole batch,
and multiply the policy's term: penalties are left alone.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from polopt.numerics import SEQUENCE_LIMIT, masked_sum, row_length, row_mean, safe_exp, token_info
from polopt.transform import piece
from polopt.types import Array, Context, Credit, Surrogate, Trajectories


def per_token(log_ratio: Array, mask: Array) -> Array:
    """ρ of every token."""
    return safe_exp(log_ratio)


def per_sequence(log_ratio: Array, mask: Array) -> Array:
    """The product of ρ over a row, on each of its tokens."""
    total = masked_sum(log_ratio, mask, axis=1)
    return jnp.broadcast_to(safe_exp(total, SEQUENCE_LIMIT)[:, None], mask.shape)


def per_sequence_mean(log_ratio: Array, mask: Array) -> Array:
    """The geometric mean of ρ over a row, on each of its tokens."""
    mean = row_mean(log_ratio, mask)
    return jnp.broadcast_to(safe_exp(mean, SEQUENCE_LIMIT)[:, None], mask.shape)


def _ratio(trajectories: Trajectories, credit: Credit, level: Callable) -> tuple[Array, Array]:
    mask = credit.keep & trajectories.action_mask
    columns = trajectories.columns
    log_ratio = jnp.where(mask, columns["logp_old"] - columns["logp_behaviour"], 0)
    return level(log_ratio, mask), mask


def _truncated(
    trajectories: Trajectories,
    credit: Credit,
    *,
    high: Array,
    level: Callable,
    normalise: bool,
    low: Array | None = None,
) -> dict[str, Array]:
    ratio, mask = _ratio(trajectories, credit, level)
    weight = jnp.clip(ratio, low, high)
    if not normalise:
        return {"weight": weight}
    # The mean is over tokens, or over rows.
    counted = mask * 1.0 if level is per_token else mask / jnp.maximum(row_length(mask), 1)[:, None]
    mean = jnp.sum(counted * weight) / jnp.maximum(jnp.sum(counted), 1)
    return {"weight": weight / jnp.where(mean > 1e-8, mean, 1)}


def _masked(
    trajectories: Trajectories,
    credit: Credit,
    *,
    high: Array,
    level: Callable,
    low: Array | None = None,
) -> dict[str, Array]:
    ratio, _ = _ratio(trajectories, credit, level)
    inside = ratio <= high
    if low is not None:
        inside &= ratio >= low
    return {"weight": jnp.where(inside, ratio, 0)}


def _corrected(surrogate: Surrogate, context: Context) -> Surrogate:
    term, weight = surrogate.terms["policy"], context.before["weight"]
    info = {"policy__correction": token_info(weight, context.mask)}
    return surrogate.with_term("policy", weight * term.objective, term.mask, **info)


@piece(
    "trajectory",
    before=_truncated,
    reads="policy",
    needs=("logp_old", "logp_behaviour"),
    couples="sequence",
    formula="objective · sg[min(ρ, C)],  ρ = π_old/μ",
    source="TIS, Yao et al. 2025 (blog: Your efficient RL framework secretly brings off-policy RL)",
    repairs=("sampler_mismatch",),
    differs=("verl's C is 2, TRL's 3; tunix corrects tokens only",),
)
def truncated_is(
    surrogate: Surrogate,
    context: Context,
    *,
    low: float | None = None,
    high: float = 2.0,
    level: Callable = per_token,
    normalise: bool = False,
) -> Surrogate:
    """Weigh by how much likelier the trainer finds the data than the sampler did, up to a bound.

    Args:
      level: `per_token`, `per_sequence` or `per_sequence_mean`.
      normalise: divide by the mean weight of the batch (of tokens, or of rows).
    """
    return _corrected(surrogate, context)


@piece(
    "trajectory",
    before=_masked,
    reads="policy",
    needs=("logp_old", "logp_behaviour"),
    couples="sequence",
    formula="objective · sg[ρ · 1[lo ≤ ρ ≤ hi]],  ρ = π_old/μ",
    source="IcePop, ring-1T 2025 and INTELLECT-3, 2512.16144; MIS, Liu et al. 2025 (blog)",
    repairs=("sampler_mismatch", "staleness"),
    differs=("tokens outside stay in the denominator, as in TRL",),
)
def masked_is(
    surrogate: Surrogate,
    context: Context,
    *,
    low: float | None = 0.5,
    high: float = 5.0,
    level: Callable = per_token,
) -> Surrogate:
    """Weigh as `truncated_is`, but give what lies outside the bounds no weight at all.

    Args:
      level: `per_token`, `per_sequence` or `per_sequence_mean`.
    """
    return _corrected(surrogate, context)
