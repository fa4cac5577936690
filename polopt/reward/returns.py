"""Returns: from the reward of each token to one number per row, or one per token."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from polopt.numerics import segment_max, segment_total, suffix_sum
from polopt.transform import piece
from polopt.types import Array, Credit, Trajectories


def scored_rows(trajectories: Trajectories) -> Array:
    """bool[N]: rows that statistics may count: real, and of known reward."""
    return trajectories.scored & (trajectories.length > 0)


def episode_weight(trajectories: Trajectories) -> Array:
    """f32[N]: 1 / (scored rows of the row's episode), so that statistics count an episode once."""
    counted = scored_rows(trajectories).astype(float)
    rows = segment_total(counted, trajectories.episode)
    return counted / jnp.maximum(rows, 1)


def episode_return(reward: Array, trajectories: Trajectories) -> Array:
    """f32[N]: Σ_t reward[N,T] over the row and over all rows of its episode."""
    return segment_total(jnp.sum(reward, axis=1), trajectories.episode)


def best_of_others(returns: Array, trajectories: Trajectories) -> Array:
    """f32[N]: the largest return of the group's other scored episodes, -inf if there is none."""
    weight, group = episode_weight(trajectories), trajectories.group
    best = segment_max(jnp.where(weight > 0, returns, -jnp.inf), group)
    leads = (weight > 0) & (returns == best)
    shared = segment_total(jnp.where(leads, weight, 0), group) > 1.5  # by more than one episode
    second = segment_max(jnp.where((weight > 0) & ~leads, returns, -jnp.inf), group)
    return jnp.where(leads & ~shared, second, best)


@piece(
    "reward",
    reads="reward",
    writes="sequence",
    formula="R_i = Σ_t r_it",
    source="REINFORCE, Williams 1992",
)
def outcome_return(credit: Credit, trajectories: Trajectories) -> Credit:
    """One return per trajectory: the sum of all that it earned, the same for every token."""
    return dataclasses.replace(credit, sequence=episode_return(credit.reward, trajectories))


@piece(
    "reward",
    reads="reward",
    writes="value",
    formula="G_it = Σ_{s≥t} γ^{s−t} r_is",
    source="Sutton & Barto 2018, eq. 13.8",
)
def reward_to_go(credit: Credit, trajectories: Trajectories, *, gamma: float = 1.0) -> Credit:
    """The discounted sum of what a token and those after it earn; observations do not discount."""
    value = suffix_sum(credit.reward, gamma, trajectories.action_mask)
    return dataclasses.replace(credit, value=value)
