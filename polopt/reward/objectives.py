"""Several rewards: each compared within its group before they are summed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp

from polopt.errors import PoloptError, did_you_mean
from polopt.numerics import centre, group_std
from polopt.reward.returns import episode_return, episode_weight
from polopt.transform import piece
from polopt.types import Credit, Trajectories

Weights = tuple[tuple[str, float], ...]  # of components by name; structure, not a number


def objective_weights(weights: Mapping[str, float]) -> Weights:
    """Weights of reward components by name, in the form that a piece can hold."""
    return tuple(sorted((name, float(weight)) for name, weight in weights.items()))


@piece(
    "reward",
    reads="reward",
    writes="sequence",
    formula="A_i = Σ_k w_k·(r_ik − mean_g(r_k)) / (std_g(r_k) + ε)",
    source="GDPO, 2601.05242, eq. 4-6",
    repairs=("reward_swamping",),
    min_group=2,
    differs=("ε is 1e-6 in verl, 1e-4 in TRL; read from the recorded components",),
)
def per_objective_group_norm(
    credit: Credit,
    trajectories: Trajectories,
    *,
    weights: Weights = (),
    eps: float = 1e-6,
    ddof: int = 1,
) -> Credit:
    """Normalise every component of the reward in its group, then add: none drowns another.

    Args:
      weights: `objective_weights({"score": 1.0, "format": 0.5})`; those not named weigh 1.
    """
    parts, given = trajectories.reward_parts, dict(weights)
    for name in given:
        if name not in parts:
            raise PoloptError(
                f"no reward component {name!r}{did_you_mean(name, parts)} "
                f"(there are {', '.join(parts)})"
            )
    own, group = episode_weight(trajectories), trajectories.group
    total = jnp.zeros(group.shape)
    for name, part in parts.items():
        R = episode_return(part, trajectories)
        normed = centre(R, group, own) / (group_std(R, group, own, ddof) + eps)
        total = total + given.get(name, 1.0) * normed
    return dataclasses.replace(credit, sequence=total)
