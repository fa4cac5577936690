"""Filters: tokens that leave numerator and denominator because of how their row ended."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from polopt.errors import PoloptError, did_you_mean
from polopt.numerics import centre, group_mean, group_std, segment_max
from polopt.reward.returns import episode_return, episode_weight
from polopt.transform import piece
from polopt.types import Array, Credit, Trajectories, truncated


def recorded_return(trajectories: Trajectories, part: str | None = None) -> Array:
    """f32[N]: what the row's episode earned, before any piece has shaped it.

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
    return episode_return(reward, trajectories)


def spread(trajectories: Trajectories, part: str | None = None) -> Array:
    """bool[N]: the recorded rewards of the row's group are not all equal."""
    R, group = recorded_return(trajectories, part), trajectories.group
    return segment_max(abs(centre(R, group, episode_weight(trajectories))), group) > 0


def group_spread(trajectories: Trajectories, part: str | None = None) -> Array:
    """f32[N]: the standard deviation (ddof=1) of the recorded rewards of the row's group."""
    R, weight = recorded_return(trajectories, part), episode_weight(trajectories)
    return group_std(R, trajectories.group, weight, 1)


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


def _levels(x: Array, tolerance: Array) -> Array:
    """i32[N]: the place of each number among the distinct ones, small ones first.

    Numbers that differ by rounding are one: groups of one right row and of one wrong row spread
    alike, whatever the order in which their rows were summed.
    """
    order = jnp.argsort(x)
    apart = jnp.diff(x[order]) > tolerance[order][:-1]
    return jnp.zeros_like(order).at[order[1:]].set(jnp.cumsum(apart))


@piece(
    "reward",
    formula="keep_i = 1[std_g(R) is among the top share of groups]",
    source="StarPO-S, RAGEN, 2504.20073, sec. 4.2",
    repairs=("dead_groups",),
    differs=("of groups that spread alike all are kept or none is counted twice: by smallest id",),
)
def keep_top_spread(
    credit: Credit,
    trajectories: Trajectories,
    *,
    share: float = 0.25,
    part: str | None = None,
) -> Credit:
    """Train on the groups whose outcome is least certain, at least one of them."""
    std, group = group_spread(trajectories, part), trajectories.group
    real = (group >= 0) & (trajectories.length > 0)
    first = -segment_max(jnp.where(real, -trajectories.id, jnp.iinfo(jnp.int32).min + 1), group)
    leads = real & (trajectories.id == first)
    order = jnp.lexsort((trajectories.id, _levels(jnp.where(leads, -std, jnp.inf), 1e-5 * std)))
    rank = jnp.zeros_like(order).at[order].set(jnp.arange(order.size))
    count = jnp.maximum(jnp.floor(share * jnp.sum(leads) + 1e-6), 1)
    chosen = segment_max(jnp.where(leads & (rank < count), 1.0, 0.0), group) > 0
    return dataclasses.replace(credit, keep=credit.keep & chosen[:, None])


@piece(
    "reward",
    formula="keep_i = 1[lo ≤ mean_g(R) ≤ hi]",
    source="PRIME, 2502.01456, sec. 3 (online prompt filter)",
    repairs=("dead_groups",),
)
def accuracy_window(
    credit: Credit,
    trajectories: Trajectories,
    *,
    low: float = 0.2,
    high: float = 0.8,
    part: str | None = None,
) -> Credit:
    """Take prompts out of the batch that are too hard or too easy to teach anything."""
    weight = episode_weight(trajectories)
    mean = group_mean(recorded_return(trajectories, part), trajectories.group, weight)
    inside = (mean >= low) & (mean <= high)
    return dataclasses.replace(credit, keep=credit.keep & inside[:, None])
