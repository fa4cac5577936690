"""Shaping: what is added to the reward before it becomes a return."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from polopt.numerics import row_length, segment_max
from polopt.reward.returns import scored_rows
from polopt.transform import piece
from polopt.types import Array, Credit, Trajectories


def last_action(mask: Array) -> Array:
    """bool[N,T]: True at the last masked-in token of each row."""
    at = jnp.arange(mask.shape[1])[None]
    return mask & (at == jnp.max(jnp.where(mask, at, -1), axis=1, keepdims=True))


@piece(
    "reward",
    reads="reward",
    formula="0 if L ≤ Lmax−Lc;  (Lmax−Lc−L)/Lc if L ≤ Lmax;  −1 beyond",
    source="DAPO, 2503.14476, eq. 13",
    repairs=("truncation_noise",),
    differs=("verl has no floor at −1; tunix measures characters, here it is tokens",),
)
def overlong_soft_penalty(
    credit: Credit, trajectories: Trajectories, *, max_length: float = 20480, cache: float = 4096
) -> Credit:
    """Punish length softly in the last `cache` tokens before the limit."""
    excess = (row_length(trajectories.action_mask) - (max_length - cache)) / cache
    penalty = jnp.clip(excess, 0, 1)[:, None] * last_action(trajectories.action_mask)
    return dataclasses.replace(credit, reward=credit.reward - penalty)


@piece(
    "reward",
    reads="sequence",
    formula="R_i + λ_i if right else R_i + min(0, λ_i),  λ = 1/2 − (L_i − L_min)/(L_max − L_min)",
    source="Kimi k1.5, 2501.12599, sec. 2.3.3",
    repairs=("reward_hacking",),
    differs=("a group of rows of one length has no penalty",),
)
def length_penalty(
    credit: Credit, trajectories: Trajectories, *, weight: float = 1.0, above: float = 0.5
) -> Credit:
    """Prefer the shorter of a group's right rows, and punish the longer of its wrong ones."""
    length, group = row_length(trajectories.action_mask), trajectories.group
    counted = scored_rows(trajectories)
    longest = segment_max(jnp.where(counted, length, -jnp.inf), group)
    shortest = -segment_max(jnp.where(counted, -length, -jnp.inf), group)
    differ = counted & (longest > shortest)
    spread = jnp.where(differ, longest - shortest, 1)
    reward = jnp.where(differ, 0.5 - (length - jnp.where(differ, shortest, 0)) / spread, 0)
    right = credit.sequence > above
    added = weight * jnp.where(right, reward, jnp.minimum(reward, 0))
    return dataclasses.replace(credit, sequence=credit.sequence + added)


@piece(
    "reward",
    reads=("sequence", "value"),
    writes="value",
    needs=("entropy",),
    formula="A_it + min(α·H_it, |A_it|/κ)",
    source="2506.14758, eq. 5-6 (reasoning with exploration)",
    repairs=("entropy_collapse",),
)
def entropy_shaping(
    credit: Credit, trajectories: Trajectories, *, coefficient: float = 0.4, bound: float = 2.0
) -> Credit:
    """Add the entropy of a token to its credit, never so much that the sign turns."""
    value, H = credit.per_token(), trajectories.columns["entropy"]
    bonus = jnp.minimum(coefficient * H, jnp.abs(value) / bound)
    return dataclasses.replace(credit, value=value + bonus)
