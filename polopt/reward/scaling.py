"""Scales: by what a centred return is divided."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from polopt.numerics import group_std, masked_sum
from polopt.reward.returns import episode_weight
from polopt.transform import piece
from polopt.types import Credit, Trajectories


@piece(
    "reward",
    reads="sequence",
    formula="A_i / (std_g(R) + ε)",
    source="GRPO, 2402.03300, eq. 4",
    repairs=("no_baseline",),
    invariant=("scale",),
    min_group=2,
    differs=(
        "the paper does not say which standard deviation: ddof=1 as in verl, TRL and tunix;"
        " ε is 1e-6 in verl and tunix, 1e-4 in TRL",
    ),
)
def group_std_scale(
    credit: Credit, trajectories: Trajectories, *, eps: float = 1e-6, ddof: int = 1
) -> Credit:
    """Divide by the standard deviation of the group's returns. Equal members keep credit 0."""
    std = group_std(credit.sequence, trajectories.group, episode_weight(trajectories), ddof)
    return dataclasses.replace(credit, sequence=credit.sequence / (std + eps))


@piece(
    "reward",
    reads=("sequence", "value"),
    writes="value",
    formula="(A_it − mean) / sqrt(var + ε)",
    source="REINFORCE++, 2501.03262, sec. 3",
    invariant=("shift", "scale"),
    differs=("global over the rollout batch, as in verl; ddof=1 and ε inside the root",),
)
def batch_whiten(
    credit: Credit, trajectories: Trajectories, *, eps: float = 1e-8, ddof: int = 1
) -> Credit:
    """Zero mean and unit variance over all trained tokens of the rollout batch."""
    counted = credit.keep & trajectories.action_mask & trajectories.scored[:, None]
    value = credit.per_token()
    count = jnp.sum(counted, dtype=value.dtype)
    mean = masked_sum(value, counted) / jnp.maximum(count, 1)
    low = jnp.min(value, initial=jnp.inf, where=counted)
    high = jnp.max(value, initial=-jnp.inf, where=counted)
    # Equal credits are zero exactly: what rounding leaves would be divided by sqrt(eps).
    centred = jnp.where(counted & (high > low), value - mean, 0)
    variance = jnp.sum(centred**2) / jnp.maximum(count - ddof, 1)
    return dataclasses.replace(credit, value=centred * jax.lax.rsqrt(variance + eps))
