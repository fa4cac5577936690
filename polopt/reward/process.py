"""Process rewards: a number for every token, from a reward model that is itself a policy.

PRIME (2502.01456) is the sum of two branches, whitened:

    add(
        chain(implicit_process_reward(), largest_return_scale(), token_leave_one_out(),
              reward_to_go()),
        chain(outcome_return(), leave_one_out_baseline()),
        weights=(5.0, 5.0),
    )
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from polopt.numerics import group_mean, row_length, row_mean, segment_total, suffix_sum
from polopt.reward.returns import episode_weight
from polopt.reward.shaping import last_action
from polopt.transform import piece
from polopt.types import Credit, Trajectories


@piece(
    "reward",
    reads="reward",
    needs=("logp_prm", "logp_ref"),
    formula="r_it = β·(l_prm − l_ref)",
    source="PRIME, 2502.01456; its authors' code",
    repairs=("sparse_credit",),
    differs=(
        "the paper rewards every token; its authors' code leaves the last one, whose credit is the"
        " outcome's (`last=True` rewards it)",
    ),
)
def implicit_process_reward(
    credit: Credit, trajectories: Trajectories, *, beta: float = 0.05, last: bool = False
) -> Credit:
    """Replace the reward by what an outcome reward model, read as a policy, says of each token."""
    mask = trajectories.action_mask
    if not last:
        mask = mask & ~last_action(mask)
    gap = trajectories.columns["logp_prm"] - trajectories.columns["logp_ref"]
    return dataclasses.replace(credit, reward=jnp.where(mask, beta * gap, 0))


@piece(
    "reward",
    reads="reward",
    formula="r_it / (max_jt |Σ_{s≥t} r_js| + ε)",
    source="PRIME's authors' code (batch norm)",
    repairs=("reward_swamping",),
    differs=("over the whole rollout batch, where that code takes each worker's share of it",),
)
def largest_return_scale(
    credit: Credit, trajectories: Trajectories, *, eps: float = 1e-6
) -> Credit:
    """Divide by the largest return to go of the batch, so that none exceeds one."""
    # Outside the mask a return repeats that of the next action, so no maximum is larger for it.
    returns = jnp.abs(suffix_sum(credit.reward, 1.0, trajectories.action_mask))
    largest = jnp.max(returns, initial=0, where=trajectories.scored[:, None])
    return dataclasses.replace(credit, reward=credit.reward / (largest + eps))


@piece(
    "reward",
    reads="reward",
    formula="r_it·G/(G−1) − Σ_j mean_t(r_jt)/(G−1)",
    source="PRIME, 2502.01456; its authors' code",
    repairs=("no_baseline",),
    min_group=2,
    differs=(
        "the paper's baseline leaves row i out; the authors' code takes its mean in and scales its"
        " tokens by G/(G−1), the same in the row's mean; here as in the code",
        "rows without tokens have no mean and are not counted in G",
    ),
)
def token_leave_one_out(credit: Credit, trajectories: Trajectories) -> Credit:
    """Compare every token's reward with the mean token reward of the other rows of its group."""
    mask, group = trajectories.action_mask, trajectories.group
    weight = episode_weight(trajectories) * (row_length(mask) > 0)
    size = segment_total(weight, group)
    factor = jnp.where(size > 1, size / jnp.maximum(size - 1, 1), 0)
    mean = group_mean(row_mean(credit.reward, mask), group, weight)
    reward = factor[:, None] * (credit.reward - mean[:, None])
    return dataclasses.replace(credit, reward=jnp.where(mask, reward, 0))
