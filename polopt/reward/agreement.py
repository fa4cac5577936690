"""Agreement: rewards without labels, from how the answers of a group agree. Column `answer`."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from polopt.numerics import label_ids, segment_max, segment_total
from polopt.reward.returns import scored_rows
from polopt.transform import piece
from polopt.types import Array, Credit, Trajectories


def _votes(trajectories: Trajectories) -> tuple[Array, Array]:
    """f32[N]: how many scored rows of the group give the row's answer, and how many rows it has."""
    counted = scored_rows(trajectories).astype(float)
    answer = jnp.asarray(trajectories.columns["answer"], jnp.int32)
    ids = label_ids(trajectories.group, jnp.where(counted > 0, answer, -1))
    return segment_total(counted, ids), segment_total(counted, trajectories.group)


@piece(
    "reward",
    reads="reward",
    writes="sequence",
    needs=("answer",),
    formula="R_i = 1[answer_i = the group's most frequent answer]",
    source="TTRL, 2504.16084, eq. 3",
    differs=(
        "of answers with equally many votes that of the smallest row id wins; the authors' counter"
        " takes the first that it meets, which may be no answer at all",
    ),
)
def majority_vote_reward(credit: Credit, trajectories: Trajectories) -> Credit:
    """Take the most frequent answer for the right one. Whatever was earned is not read."""
    votes, _ = _votes(trajectories)
    group, answer = trajectories.group, jnp.asarray(trajectories.columns["answer"], jnp.int32)
    most = segment_max(votes, group)
    leading = (votes > 0) & (votes == most)
    first = -segment_max(jnp.where(leading, -trajectories.id, -jnp.iinfo(jnp.int32).max), group)
    chosen = jnp.where(leading & (trajectories.id == first), answer, -1)
    winner = segment_max(chosen, group)
    sequence = (leading & (answer == winner)).astype(float)
    return dataclasses.replace(credit, sequence=sequence)


@piece(
    "reward",
    reads="reward",
    writes="sequence",
    needs=("answer",),
    formula="R_i = |cluster(i)| / G, 0 without an answer or where all answers differ",
    source="EMPO, 2504.05812, eq. 6; its authors' code for mathematics",
    differs=("answers are compared by label; free-form text needs clusters of its own",),
)
def cluster_probability_reward(credit: Credit, trajectories: Trajectories) -> Credit:
    """Reward an answer by how many of the group share it: the semantic entropy falls."""
    votes, size = _votes(trajectories)
    agreed = segment_max(votes, trajectories.group) > 1
    sequence = jnp.where(agreed, votes / jnp.maximum(size, 1), 0)
    return dataclasses.replace(credit, sequence=sequence)
