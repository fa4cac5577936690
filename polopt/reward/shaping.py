"""Shaping: what is added to the reward before it becomes a return."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from polopt.numerics import row_length
from polopt.transform import piece
from polopt.types import Array, Credit, Trajectories


def last_action(mask: Array) -> Array:
    """bool[N,T]: True at the last masked-in token of each row."""
    after = jnp.cumsum(mask[:, ::-1], axis=1)[:, ::-1]
    return mask & (after == 1)


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
