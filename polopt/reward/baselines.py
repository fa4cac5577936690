"""Baselines: what a return is compared with. They lower the variance, not the expectation."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from polopt.numerics import centre, group_mean, row_length, segment_max, segment_total
from polopt.reward.returns import best_of_others, episode_weight
from polopt.transform import Column, piece
from polopt.types import Array, Credit, Trajectories


def _centred(credit: Credit, trajectories: Trajectories) -> Array:
    return centre(credit.sequence, trajectories.group, episode_weight(trajectories))


@piece(
    "reward",
    reads="sequence",
    formula="R_i − mean_g(R)",
    source="GRPO, 2402.03300, eq. 4",
    repairs=("no_baseline",),
    invariant=("shift", "permutation"),
    min_group=2,
)
def group_mean_baseline(credit: Credit, trajectories: Trajectories) -> Credit:
    """Compare a return with the mean of its group. A group of one gets credit 0."""
    return dataclasses.replace(credit, sequence=_centred(credit, trajectories))


@piece(
    "reward",
    reads="sequence",
    formula="R_i − Σ_{j≠i} R_j / (G−1)",
    source="RLOO, 2402.14740, eq. 8; Kool 2019",
    repairs=("no_baseline",),
    invariant=("shift", "permutation"),
    min_group=2,
    differs=(
        "verl's loop leaves a group of one without a baseline; here its credit is 0, as in"
        " TRL and tunix",
    ),
)
def leave_one_out_baseline(credit: Credit, trajectories: Trajectories) -> Credit:
    """Compare a return with the mean of the others in its group: G/(G−1) · (R_i − mean_g R)."""
    size = segment_total(episode_weight(trajectories), trajectories.group)
    factor = size / jnp.maximum(size - 1, 1)
    return dataclasses.replace(credit, sequence=factor * _centred(credit, trajectories))


@piece(
    "reward",
    reads=("sequence", "value"),
    needs=("greedy_return",),
    formula="A_it − R(greedy completion)",
    source="ReMax, 2310.10505, eq. 5",
    repairs=("no_baseline",),
)
def remax_baseline(credit: Credit, trajectories: Trajectories) -> Credit:
    """Compare with the return of the greedy completion of the same prompt (one more rollout)."""
    greedy = trajectories.columns["greedy_return"]
    if credit.value is not None:
        return dataclasses.replace(credit, value=credit.value - greedy[:, None])
    return dataclasses.replace(credit, sequence=credit.sequence - greedy)


@piece(
    "reward",
    reads="sequence",
    formula="R_i − Σ_j L_j·R_j / Σ_j L_j",
    source="OPO, 2505.23585, eq. 9",
    repairs=("no_baseline",),
    invariant=("shift",),
    min_group=2,
    differs=("verl gives a group of one the baseline 0; here its credit is 0",),
)
def length_weighted_baseline(credit: Credit, trajectories: Trajectories) -> Credit:
    """Compare with the group's mean weighed by length, of the least variance on-policy.

    The squared norm of a row's score is taken to grow with its length.
    """
    weight = episode_weight(trajectories)
    group, length = trajectories.group, row_length(trajectories.action_mask)
    offset = _centred(credit, trajectories)  # exactly zero where all are equal
    shift = group_mean(offset, group, weight * length)
    written = segment_total(weight * length, group) > 0
    spread = segment_max(jnp.abs(offset), group) > 0
    counted = (weight > 0) & written & spread
    return dataclasses.replace(credit, sequence=jnp.where(counted, offset - shift, 0))


@piece(
    "reward",
    reads="sequence",
    formula="R_i − c",
    source="TOPR, 2503.14286, sec. 3",
)
def constant_baseline(credit: Credit, trajectories: Trajectories, *, value: float) -> Credit:
    """Compare with a constant, which sets the share of rows that count as positive."""
    return dataclasses.replace(credit, sequence=credit.sequence - value)


@piece(
    "reward",
    reads="sequence",
    formula="A_i − δ",
    source="AsymRE, 2506.20520, eq. 4",
    repairs=("staleness",),
    from_nothing=True,
)
def shift_baseline(credit: Credit, trajectories: Trajectories, *, by: float = -0.1) -> Credit:
    """Move the baseline: below the mean, what was good weighs more than what was bad."""
    return dataclasses.replace(credit, sequence=credit.sequence - by)


@piece(
    "reward",
    reads="sequence",
    formula="R_i − τ·log mean_{j≠i} exp(R_j/τ)",
    source="Kimi k1.5, 2501.12599, sec. 2.3.2; leave-one-out: 2602.05933",
    repairs=("no_baseline",),
    invariant=("shift", "permutation"),
    min_group=2,
    differs=(
        "exact for any temperature: public code shifts by the group's maximum and holds the sum"
        " above 1e-8, so that a lone best row gains at most about 18τ",
    ),
)
def log_mean_exp_baseline(
    credit: Credit, trajectories: Trajectories, *, temperature: float = 0.01
) -> Credit:
    """Compare with the soft maximum of the others: the log-partition, not the mean."""
    weight, group, R = episode_weight(trajectories), trajectories.group, credit.sequence
    counted, size = weight > 0, segment_total(weight, group)
    best = best_of_others(R, trajectories)
    lone = counted & (best < R)  # the one best row, against which all others would underflow
    top = segment_max(jnp.where(counted, R, -jnp.inf), group)
    second = segment_max(jnp.where(lone, best, -jnp.inf), group)
    below = jnp.exp(jnp.minimum((R - second) / temperature, 0))
    rest = segment_total(jnp.where(lone, 0, weight * below), group)
    own = jnp.exp((R - top) / temperature)
    others = segment_total(jnp.where(counted, weight * own, 0), group) - own
    soft = jnp.log(jnp.where(lone, rest, others) / jnp.maximum(size - 1, 1))
    spread = segment_max(jnp.abs(_centred(credit, trajectories)), group) > 0
    made = R - best - temperature * soft
    return dataclasses.replace(credit, sequence=jnp.where(counted & spread, made, 0))


@piece(
    "reward",
    reads="sequence",
    formula="R_i − V*(q)",
    source="A*-PO, 2505.20686, eq. 5-6",
    repairs=("no_baseline", "dead_groups"),
)
def optimal_value_baseline(
    credit: Credit, trajectories: Trajectories, *, to: Column = "optimal_value"
) -> Credit:
    """Compare with the optimal value of the prompt, estimated from samples of the reference."""
    return dataclasses.replace(credit, sequence=credit.sequence - trajectories.columns[to])
