"""Filters: tokens that leave numerator and denominator because of how their row ended."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from polopt.errors import PoloptError, did_you_mean
from polopt.numerics import centre, segment_max
from polopt.reward.returns import episode_return, episode_weight
from polopt.transform import piece
from polopt.types import Array, Credit, Trajectories, truncated


def spread(trajectories: Trajectories, part: str | None = None) -> Array:
    """bool[N]: the recorded rewards of the row's group are not all equal.

    Args:
      part: the reward component to look at; all of them summed if None.
    """
    parts = trajectories.reward_parts
    if part is not None and part not in parts:
        raise PoloptError(
            f"no reward component {part!r}{did_you_mean(part, parts)} "
            f"(there are {', '.join(parts)})"
        )
    if part is None:
        nothing = jnp.zeros(trajectories.tokens.shape)  # every reward may have abstained
        reward = sum(parts.values(), nothing)
    else:
        reward = parts[part]
    weight = episode_weight(trajectories)
    centred = centre(episode_return(reward, trajectories), trajectories.group, weight)
    return segment_max(abs(centred), trajectories.group) > 0


@piece(
    "reward",
    formula="keep_i = 0 if all R of the group are equal",
    source="DAPO, 2503.14476, eq. 11",
    repairs=("dead_groups",),
    differs=(
        "looks at the recorded reward, not at the shaped one, as the paper's filter on"
        " accuracy does",
    ),
)
def drop_zero_spread_groups(
    credit: Credit, trajectories: Trajectories, *, part: str | None = None
) -> Credit:
    """Take unanimous groups out of the batch: they have no gradient, only a denominator."""
    return dataclasses.replace(credit, keep=credit.keep & spread(trajectories, part)[:, None])


@piece(
    "reward",
    formula="keep_i = 0 if the row was cut by a limit",
    source="DAPO, 2503.14476, sec. 3.4 (overlong filtering)",
    repairs=("truncation_noise",),
    differs=("the row still counts in its group's statistics, as in TRL",),
)
def drop_truncated(credit: Credit, trajectories: Trajectories) -> Credit:
    """Take truncated rows out of the loss."""
    return dataclasses.replace(credit, keep=credit.keep & ~truncated(trajectories.stop)[:, None])
