"""Blocks of whole groups: what a round of sampling brings, chosen from and joined. Host side."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np

from polopt.errors import PoloptError
from polopt.rollout.rows import LABELS, NO_LABEL
from polopt.tasks.task import Example
from polopt.types import Trajectories


@dataclasses.dataclass(frozen=True)
class Block:
    """Whole groups of `size` neighbouring rows."""

    trajectories: Trajectories
    examples: list[Example]
    completions: list[str]
    size: int

    @property
    def rows(self) -> int:
        """Rows of all groups."""
        return len(self.examples)

    @property
    def groups(self) -> int:
        """How many groups."""
        return self.rows // self.size

    def select(self, rows: np.ndarray) -> Block:
        """The rows `bool[N]`, of whole groups."""
        chosen = np.flatnonzero(rows)
        taken = jax.tree.map(lambda x: x[chosen], self.trajectories)
        own = np.arange(len(chosen), dtype=np.int32)
        taken = dataclasses.replace(taken, group=own // self.size, episode=own)
        return Block(
            taken,
            [self.examples[i] for i in chosen],
            [self.completions[i] for i in chosen],
            self.size,
        )

    def first(self, groups: int) -> Block:
        """So many groups from the beginning."""
        return self.select(np.arange(self.rows) < groups * self.size)

    @staticmethod
    def join(blocks: list[Block]) -> Block:
        """One block of several, as wide as the widest."""
        block = Block(
            _stacked([block.trajectories for block in blocks]),
            [e for b in blocks for e in b.examples],
            [c for b in blocks for c in b.completions],
            blocks[0].size,
        )
        return block.select(np.ones(block.rows, bool))


def joined(parts: Sequence[tuple[Trajectories, list[str]]]) -> tuple[Trajectories, list[str]]:
    """One batch of what several processes wrote: rows, each a group of its own, and their texts."""
    if len(parts) == 1:
        return parts[0]
    trajectories = _stacked([part for part, _ in parts])
    own = np.arange(len(trajectories.length), dtype=np.int32)
    trajectories = dataclasses.replace(trajectories, group=own, episode=own)
    return trajectories, [text for _, texts in parts for text in texts]


def _stacked(parts: Sequence[Trajectories]) -> Trajectories:
    """Rows of several batches, as wide as the widest; groups and episodes keep their old ids."""
    T = max(part.tokens.shape[1] for part in parts)
    names = {name: None for part in parts for name in part.reward_parts}

    def widen(x: np.ndarray, fill: int = 0) -> np.ndarray:
        if x.ndim < 2:
            return x
        return np.pad(x, ((0, 0), (0, T - x.shape[1])), constant_values=fill)

    def wide(x: Trajectories) -> Trajectories:
        absent = np.zeros(x.tokens.shape, np.float32)
        earned = {name: x.reward_parts.get(name, absent) for name in names}
        made = jax.tree.map(widen, dataclasses.replace(x, reward_parts=earned))
        labels = {k: widen(v, NO_LABEL) for k, v in x.columns.items() if k in LABELS}
        columns = {**made.columns, **labels}
        return dataclasses.replace(made, turn=widen(x.turn, -1), columns=columns)

    return jax.tree.map(lambda *xs: np.concatenate(xs), *(wide(part) for part in parts))


def passed(test: Callable, block: Block) -> np.ndarray:
    """bool[N]: rows of the groups that pass a refill's test."""
    rows = np.asarray(test(block.trajectories), bool)
    groups = rows.reshape(-1, block.size)
    if (groups.any(1) != groups.all(1)).any():
        raise PoloptError(
            "the refill's test passes a part of a group: give True or False on all rows of a "
            "group alike"
        )
    return rows


def highest(statistic: Callable, block: Block, groups: int) -> np.ndarray:
    """bool[N]: rows of the groups that rank highest; among equals, of those drawn first."""
    values = np.asarray(statistic(block.trajectories), np.float64).reshape(-1, block.size)
    if (values != values[:, :1]).any():
        raise PoloptError("keep: the statistic differs within a group: give each row its group's")
    best = np.argsort(-values[:, 0], kind="stable")[:groups]
    return np.isin(np.arange(block.groups), best).repeat(block.size)
