"""Baselines per position: what a token's return is compared with depends on how far it has come."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from polopt.numerics import (
    label_ids,
    row_length,
    running_sum,
    safe_exp,
    segment_max,
    segment_quotient,
    segment_total,
)
from polopt.reward.returns import scored_rows
from polopt.transform import piece
from polopt.types import Array, Credit, Trajectories


def _energy(trajectories: Trajectories, cap: Array | None) -> Array:
    """f32[N,T]: Σ_{s≤t} (1 − 2π + Σ_v π²), the squared norm of the score of all logits so far."""
    columns, mask = trajectories.columns, trajectories.action_mask
    p = safe_exp(columns["logp_old"])
    # Σ π² ≥ π²: rounding of a sure token must not make a weight negative, nor the sum of them zero.
    w = (1 - p) ** 2 + jnp.maximum(columns["sum_prob_sq"] - p**2, 0)
    if cap is not None:
        ratio = safe_exp(columns["logp_old"] - columns["logp_behaviour"])
        w = w * jnp.minimum(ratio, cap) ** 2
    return running_sum(jnp.where(mask, w, 0))


def _second_longest(length: Array, group: Array, counted: Array) -> Array:
    """[N]: the length of the second longest row of the group; the longest one's if two share it."""
    longest = segment_max(jnp.where(counted, length, -1), group)
    at_top = counted & (length == longest)
    several = segment_total(at_top.astype(length.dtype), group) > 1
    below = segment_max(jnp.where(counted & ~at_top, length, 0), group)
    return jnp.where(several, longest, jnp.maximum(below, 0))


@piece(
    "reward",
    reads="reward",
    writes="value",
    needs=("logp_old", "sum_prob_sq", "logp_behaviour"),
    formula="A_it = G_it − Σ_j G_jt W_jt / Σ_j W_jt,  W = Σ_{s≤t} (1 − 2π + Σ_v π²)",
    source="OTB, 2602.07078, eq. 10-13",
    repairs=("no_baseline", "sparse_credit"),
    min_group=2,
    differs=(
        "a group of one has credit 0; verl leaves it its return",
        "rows are aligned by the number of the action token, which the authors do for rows with"
        " observations: without them it is the position",
    ),
)
def optimal_token_baseline(
    credit: Credit,
    trajectories: Trajectories,
    *,
    cap: float | None = None,
    zero_tail: bool = True,
    eps: float = 1e-8,
) -> Credit:
    """Compare a return to go with that of the group at the same place, weighed by score energy.

    Args:
      cap: weigh the energy by min(π_old/μ, cap)², where the sampler is not the trainer.
      zero_tail: no baseline for the longest row beyond the second longest, which has no company.
    """
    mask, group = trajectories.action_mask, trajectories.group
    scored = scored_rows(trajectories)
    G = running_sum(jnp.where(mask, credit.reward, 0), reverse=True)
    W = _energy(trajectories, cap)
    place = running_sum(mask.astype(float)).astype(int) - 1
    counted = mask & scored[:, None]
    rows = label_ids(group)[:, None] * mask.shape[1] + place
    ids = jnp.where(counted & (group >= 0)[:, None], rows, -1).reshape(-1)
    baseline = segment_quotient((G * W).reshape(-1), W.reshape(-1), ids, eps).reshape(mask.shape)
    if zero_tail:
        second = _second_longest(row_length(mask), group, scored)
        baseline = jnp.where(place >= second[:, None], 0, baseline)
    company = segment_total(scored.astype(G.dtype), group) > 1
    value = jnp.where(counted & company[:, None], G - baseline, 0)
    return dataclasses.replace(credit, value=value)
