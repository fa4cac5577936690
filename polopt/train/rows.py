"""Rows of a batch: which optimiser step each belongs to, and how a step's rows are gathered."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from polopt.errors import PoloptError
from polopt.models.layout import Layout
from polopt.types import Array, Prepared, Rows, Trajectories


def take(trajectories: Trajectories, rows: Array) -> Trajectories:
    """The rows `i32[R]` of a batch; an index of N or more gives a padding row."""
    taken, valid = _gather(trajectories, rows)
    n = trajectories.length.shape[0]
    return dataclasses.replace(
        taken,
        turn=jnp.where(valid[:, None], taken.turn, -1),
        group=_renumber(taken.group, valid, n),
        episode=_renumber(taken.episode, valid, n),
        temperature=jnp.where(valid, taken.temperature, 1),
    )


def take_prepared(prepared: Prepared, rows: Array) -> Prepared:
    """The same rows of a prepared batch: weight and credit of padding rows are zero."""
    taken: Rows
    taken, valid = _gather(prepared.rows, rows)
    group = _renumber(taken.group, valid, prepared.rows.group.shape[0])
    return dataclasses.replace(prepared, rows=dataclasses.replace(taken, group=group))


def _gather(tree, rows: Array):
    taken = jax.tree.map(lambda x: jnp.take(x, rows, axis=0, mode="fill", fill_value=0), tree)
    return taken, rows < jax.tree.leaves(tree)[0].shape[0]


def _renumber(ids: Array, valid: Array, n: int) -> Array:
    """Ids in [0, n) of R taken rows as ids in [0, R), as segment operations ask; -1 on padding."""
    valid = valid & (ids >= 0)
    place = jnp.arange(ids.shape[0], dtype=ids.dtype)
    first = jax.ops.segment_min(place, jnp.where(valid, ids, n), num_segments=n + 1)
    return jnp.where(valid, first[ids], -1)


def side_by_side(splits: Array, layout: Layout | None, shards: int) -> tuple[Array, Layout | None]:
    """Micro-batches in the order in which they are computed: the next one of every shard at once.

    Args:
      splits: i32[shards * k, m], the row numbers of micro-batches, those of a shard together.
      layout: of each; None if they are computed in rows.
      shards: equal blocks of micro-batches that are computed side by side.

    Returns:
      i32[k, shards * m]; and the layout with k splits, and within them an axis of shards if there
      are several.
    """
    dealt = splits.reshape(shards, -1, splits.shape[-1]).swapaxes(0, 1)
    if layout is not None and shards > 1:
        layout = jax.tree.map(lambda x: x.reshape(shards, -1, *x.shape[1:]).swapaxes(0, 1), layout)
    return dealt.reshape(dealt.shape[0], -1), layout


def in_order(tree: Any, shards: int) -> Any:
    """Leaves [k, shards * m, ...], as `side_by_side` dealt rows, back as [R, ...]."""

    def undealt(x: Array) -> Array:
        apart = x.reshape(x.shape[0], shards, -1, *x.shape[2:]).swapaxes(0, 1)
        return apart.reshape(-1, *x.shape[2:])

    return jax.tree.map(undealt, tree)


def round_up(n: int, multiple: int) -> int:
    """The smallest multiple that is at least n."""
    return -(-n // multiple) * multiple


def assign_steps(
    group: np.ndarray, minibatches: int, seed: tuple[int, ...]
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Deal the groups of a batch to optimiser steps, at random and whole.

    Args:
      group: i32[N], -1 on padding rows.
      minibatches: optimiser steps per pass; at most the number of groups.
      seed: of the permutation, e.g. (run seed, rollout, epoch).

    Returns:
      `step_of` i32[N] (0 on padding rows), and for each step the rows in it, ascending.
    """
    ids = np.unique(group[group >= 0])
    if minibatches > len(ids):
        raise PoloptError(
            f"minibatches={minibatches} is more than the {len(ids)} groups of a "
            "rollout: groups lie whole within an optimiser step"
        )
    order = np.random.default_rng(seed).permutation(ids) if minibatches > 1 else ids
    step_of = np.zeros(len(group), np.int32)
    for step, part in enumerate(np.array_split(order, minibatches)):
        step_of[np.isin(group, part)] = step
    real = group >= 0
    return step_of, [np.flatnonzero(real & (step_of == s)) for s in range(minibatches)]


def pad_rows(rows: np.ndarray, width: int, n: int) -> np.ndarray:
    """i32[width]: the row numbers, then n (a padding row) up to a fixed width."""
    return np.concatenate([rows, np.full(width - len(rows), n)]).astype(np.int32)
