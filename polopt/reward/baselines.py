"""Baselines: what a return is compared with. They lower the variance, not the expectation."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from polopt.numerics import centre, segment_total
from polopt.reward.returns import episode_weight
from polopt.transform import piece
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
