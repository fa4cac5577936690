"""Batches that are spoilt on purpose."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from polopt.testing.probe import Case
from polopt.types import Trajectories


def plant(case: Case, value: float) -> Case:
    """The case with `value` at every float that no method may read."""
    batch = case.trajectories
    mask = np.asarray(batch.action_mask)
    earned = mask | ~mask.any(axis=1, keepdims=True)  # a row without actions is paid at its prompt
    earned &= (np.arange(mask.shape[1]) < batch.length[:, None]) & batch.scored[:, None]

    def fill(x: np.ndarray, inside: np.ndarray = mask) -> np.ndarray:
        x = np.asarray(x)
        if not np.issubdtype(x.dtype, np.floating):
            return x
        if x.ndim == 1:
            return np.where(batch.length > 0, x, np.float32(value))
        return np.where(inside.reshape(inside.shape + (1,) * (x.ndim - 2)), x, np.float32(value))

    parts = {name: fill(x, earned) for name, x in batch.reward_parts.items()}
    columns = jax.tree.map(fill, batch.columns)
    batch = dataclasses.replace(
        batch,
        reward_parts=parts,
        columns=columns,
        logp_sampler=fill(batch.logp_sampler),
        log_keep=fill(batch.log_keep),
        temperature=fill(batch.temperature),
    )
    return dataclasses.replace(case, trajectories=batch, outputs=jax.tree.map(fill, case.outputs))


def bfloat16(case: Case) -> Case:
    """The case with log-probabilities and other columns in bfloat16."""

    def half(x: np.ndarray) -> np.ndarray:
        x = np.asarray(x)
        return x.astype(jnp.bfloat16) if np.issubdtype(x.dtype, np.floating) else x

    batch = dataclasses.replace(
        case.trajectories,
        columns=jax.tree.map(half, case.trajectories.columns),
        logp_sampler=half(case.trajectories.logp_sampler),
        log_keep=half(case.trajectories.log_keep),
    )
    return dataclasses.replace(case, trajectories=batch, outputs=jax.tree.map(half, case.outputs))


def _with_rewards(batch: Trajectories, value: float) -> Trajectories:
    """Every row earns `value`, at its last action."""
    mask = np.asarray(batch.action_mask)
    last = mask & (np.cumsum(mask[:, ::-1], axis=1)[:, ::-1] == 1)
    parts = {name: np.float32(value) * last for name in batch.reward_parts}
    return dataclasses.replace(batch, reward_parts=parts)


def _without_actions(batch: Trajectories, keep: np.ndarray) -> Trajectories:
    mask = batch.action_mask & keep
    return dataclasses.replace(batch, action_mask=mask, turn=np.where(mask, batch.turn, -1))


def _only_padding(batch: Trajectories) -> Trajectories:
    zero, none = np.zeros_like(batch.length), np.full_like(batch.group, -1)
    made = _without_actions(batch, np.zeros_like(batch.action_mask))
    return dataclasses.replace(made, length=zero, prompt_length=zero, group=none, episode=none)


def _alone(batch: Trajectories) -> Trajectories:
    own = np.where(batch.group < 0, -1, np.arange(len(batch.group), dtype=np.int32))
    return dataclasses.replace(batch, group=own, episode=own, prompt=own)


ALONE = "groups of one"
DEGENERATE: dict[str, Callable[[Trajectories], Trajectories]] = {
    "all rewards equal": lambda b: _with_rewards(b, 0.7),
    "all rewards zero": lambda b: _with_rewards(b, 0.0),
    "rewards of 1e15": lambda b: dataclasses.replace(
        b, reward_parts={k: v * np.float32(1e15) for k, v in b.reward_parts.items()}
    ),
    ALONE: _alone,
    "everything masked": lambda b: _without_actions(b, np.zeros_like(b.action_mask)),
    "one token": lambda b: _without_actions(
        b, np.cumsum(b.action_mask).reshape(b.action_mask.shape) == 1
    ),
    "nothing scored": lambda b: dataclasses.replace(b, scored=np.zeros_like(b.scored)),
    "only padding": _only_padding,
}
