"""Pairs: which two completions of a prompt are compared."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from polopt.numerics import differ, segment_max
from polopt.reward.returns import scored_rows
from polopt.transform import piece
from polopt.types import Array, Credit, Trajectories


@piece(
    "reward",
    reads="sequence",
    formula="A = +1 on the best row of a group, −1 on the worst; the others leave the batch",
    source="Online DPO, 2402.04792, algorithm 1; best and worst: 2312.16682",
    min_group=2,
    differs=("a group whose rows are all equal has no pair and leaves the batch",),
)
def best_and_worst(credit: Credit, trajectories: Trajectories) -> Credit:
    """Make one pair of every group: the highest and the lowest return, by id among equals."""
    group, R = trajectories.group, credit.sequence
    counted = scored_rows(trajectories)
    counted &= jnp.any(credit.keep & trajectories.action_mask, axis=1)

    def first(x: Array) -> Array:
        top = counted & (x == segment_max(jnp.where(counted, x, -jnp.inf), group))
        order = -trajectories.id.astype(x.dtype)
        return top & (order == segment_max(jnp.where(top, order, -jnp.inf), group))

    spread = differ(R, group, counted)
    chosen, rejected = first(R) & spread, first(-R) & spread
    sign = chosen.astype(R.dtype) - rejected.astype(R.dtype)
    keep = credit.keep & (chosen | rejected)[:, None]
    return dataclasses.replace(credit, sequence=sign, keep=keep)
