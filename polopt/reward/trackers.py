"""Trackers: what is remembered of each prompt from rollout to rollout. Memory of `[prompts]`."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from polopt.numerics import centre, group_mean, group_std, label_ids, segment_total
from polopt.reward.returns import episode_weight
from polopt.transform import Column, piece
from polopt.types import Array, Credit, Trajectories

Memory = dict[str, Array]


def _recall(memory: Memory, prompt: Array, otherwise: Memory) -> Memory:
    """{name: [N]}: what is remembered of each row's prompt; a row without one has no past."""
    size = next(iter(memory.values())).shape[0]
    known = (prompt >= 0) & (prompt < size)
    if size == 0:
        return {name: jnp.broadcast_to(otherwise[name], prompt.shape) for name in memory}
    place = jnp.clip(prompt, 0, size - 1)
    return {name: jnp.where(known, x[place], otherwise[name]) for name, x in memory.items()}


def _store(memory: Memory, prompt: Array, changed: Memory, counted: Array) -> Memory:
    """The memory with the rows' numbers, which agree on all rows of a prompt."""
    place = jnp.where(counted & (prompt >= 0), prompt, next(iter(memory.values())).shape[0])
    return {name: x.at[place].set(changed[name], mode="drop") for name, x in memory.items()}


def _labels(trajectories: Trajectories) -> Array:
    """i32[N]: segment ids of prompts; rows without a prompt are told apart by their group."""
    n = trajectories.prompt.shape[0]
    same = jnp.where(trajectories.prompt >= 0, trajectories.prompt + n, trajectories.group)
    return label_ids(jnp.where(trajectories.group >= 0, same, -1))


def _half(prompts: int, **unused: Array) -> Memory:
    return {"success": jnp.full(prompts, 0.5), "failure": jnp.full(prompts, 0.5)}


@piece(
    "reward",
    reads="sequence",
    clock="rollout",
    init=_half,
    formula="A_i = R_i − α/(α+β);  then α ← ρα + R, β ← ρβ + 1 − R,"
    "  ρ = clip(2^(−D/D½), ρ_lo, ρ_hi)",
    source="SPO, 2509.13232, eq. 3-4",
    repairs=("dead_groups", "no_baseline"),
    differs=(
        "without a column of the drift D it is taken to be zero",
        "several rows of a prompt in one batch fade its past once and are all added",
    ),
)
def beta_tracker(
    credit: Credit,
    trajectories: Trajectories,
    *,
    memory: Memory,
    half_life: float = 0.06,
    low: float = 0.875,
    high: float = 0.96,
    drift: Column | None = None,
) -> tuple[Credit, Memory]:
    """Compare a return in [0, 1] with what is remembered of its prompt, from before this batch.

    Args:
      drift: a recorded column with mean |logp then − now| of the prompt's last stored response.
    """
    weight = episode_weight(trajectories)
    counted = weight > 0
    R = jnp.where(counted, credit.sequence, 0)
    past = _recall(memory, trajectories.prompt, {"success": 0.5, "failure": 0.5})
    rate = past["success"] / (past["success"] + past["failure"])
    ids = jnp.where(counted, _labels(trajectories), -1)
    moved = jnp.zeros_like(R) if drift is None else trajectories.columns[drift]
    moved = group_mean(moved, ids, weight)
    kept = jnp.clip(jnp.exp2(-moved / half_life), low, high)
    changed = {
        "success": kept * past["success"] + segment_total(weight * R, ids),
        "failure": kept * past["failure"] + segment_total(weight * (1 - R), ids),
    }
    made = dataclasses.replace(credit, sequence=jnp.where(counted, R - rate, 0))
    return made, _store(memory, trajectories.prompt, changed, counted)


def _nothing(prompts: int, **unused: Array) -> Memory:
    return {name: jnp.zeros(prompts) for name in ("count", "mean", "variance")}


def _standard(offset: Array, std: Array) -> Array:
    return jnp.where(std > 1e-6, offset / jnp.where(std > 1e-6, std, 1), 0)


@piece(
    "reward",
    reads="sequence",
    clock="rollout",
    init=_nothing,
    formula="the smaller of A_new/n + (1−1/n)·A_all and A_all/n + (1−1/n)·A_new",
    source="DCPO, 2509.02333, eq. 9-13",
    repairs=("dead_groups",),
    min_group=2,
    differs=("a prompt whose samples all agree is standardised by its past, on purpose",),
)
def smooth_standardise(
    credit: Credit, trajectories: Trajectories, *, memory: Memory, ddof: int = 1
) -> tuple[Credit, Memory]:
    """Standardise by a mixture of this group and of all that its prompt has shown before."""
    weight, ids = episode_weight(trajectories), _labels(trajectories)
    R = credit.sequence
    several = (weight > 0) & (segment_total(weight, ids) > 1)
    past = _recall(memory, trajectories.prompt, {"count": 0.0, "mean": 0.0, "variance": 0.0})
    mean, std = group_mean(R, ids, weight), group_std(R, ids, weight, ddof)
    n = past["count"] + 1
    before = (n - 1) / n
    drift = mean - past["mean"]
    all_mean = past["mean"] + drift / n
    variance = before * past["variance"] + std**2 / n + before / n * drift**2
    new = _standard(centre(R, ids, weight), std)
    whole = _standard(R - all_mean, jnp.sqrt(variance))
    towards_all, towards_new = new / n + before * whole, whole / n + before * new
    smaller = jnp.where(jnp.abs(towards_new) < jnp.abs(towards_all), towards_new, towards_all)
    changed = {"count": n, "mean": all_mean, "variance": variance}
    made = dataclasses.replace(credit, sequence=jnp.where(several, smaller, 0))
    return made, _store(memory, trajectories.prompt, changed, several)
