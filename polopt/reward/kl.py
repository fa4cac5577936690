"""KL to the reference as part of the reward."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp

from polopt.divergence import k1
from polopt.transform import Column, piece
from polopt.types import Credit, Trajectories


@piece(
    "reward",
    reads="reward",
    needs=("logp_old",),
    formula="r_it − β·k(l_old − l_ref)",
    source="1909.08593, eq. 2; 2203.02155, eq. 2",
    repairs=("reference_drift", "kl_misused"),
    differs=("evaluated once per rollout at the start of its update, without gradient",),
)
def kl_in_reward(
    credit: Credit,
    trajectories: Trajectories,
    *,
    coefficient: float = 0.02,
    estimator: Callable = k1,
    to: Column = "logp_ref",
) -> Credit:
    """Pay for every token's distance from the reference. k1 is the unbiased choice here."""
    d = trajectories.columns["logp_old"] - trajectories.columns[to]
    penalty = jnp.where(trajectories.action_mask, coefficient * estimator(d), 0)
    return dataclasses.replace(credit, reward=credit.reward - penalty)
