"""Signs: right and wrong samples weighed apart, or one of the two left out."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from polopt.transform import piece
from polopt.types import Array, Credit, Trajectories


def _right(credit: Credit, above: Array) -> Array:
    return credit.sequence > above


@piece(
    "reward",
    reads="sequence",
    formula="A_i = w₊ if R_i > r₀ else −w₋",
    source="W-REINFORCE, 2506.01347, eq. 9",
    repairs=("sharpening", "entropy_collapse"),
)
def asymmetric_scale(
    credit: Credit,
    trajectories: Trajectories,
    *,
    positive: float = 0.1,
    negative: float = 1.0,
    above: float = 0.5,
) -> Credit:
    """Give right and wrong samples one number each: less weight on the right keeps the variety."""
    sequence = jnp.where(_right(credit, above), positive, -negative)
    return dataclasses.replace(credit, sequence=sequence)


@piece(
    "reward",
    reads="sequence",
    formula="keep_i = 1[R_i > r₀]",
    source="PSR, 2506.01347, eq. 5",
    differs=("rows leave numerator and denominator, as in the authors' code",),
)
def keep_positive(credit: Credit, trajectories: Trajectories, *, above: float = 0.5) -> Credit:
    """Train on right samples only."""
    rows = trajectories.scored & _right(credit, above)
    return dataclasses.replace(credit, keep=credit.keep & rows[:, None])


@piece(
    "reward",
    reads="sequence",
    formula="keep_i = 1[R_i ≤ r₀]",
    source="NSR, 2506.01347, eq. 6",
    repairs=("sharpening",),
    differs=("rows leave numerator and denominator, as in the authors' code",),
)
def keep_negative(credit: Credit, trajectories: Trajectories, *, above: float = 0.5) -> Credit:
    """Train on wrong samples only: probability moves to all other answers."""
    rows = trajectories.scored & ~_right(credit, above)
    return dataclasses.replace(credit, keep=credit.keep & rows[:, None])
