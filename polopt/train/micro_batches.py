"""How rows are cut into micro-batches, and where the tokens of each are computed.

A micro-batch is what a device computes at once. Its size changes memory and time and, but for
rounding, nothing else. It is bounded by rows, by tokens, or not at all; tokens are counted as they
are computed, with a prompt once per group and with padding, so that a bound on them is one on
activations whatever the lengths of a batch are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from polopt.models import LanguageModel, ValueModel
from polopt.models.layout import Layout, Room, plan
from polopt.train.rows import pad_rows, round_up
from polopt.types import Trajectories


@dataclasses.dataclass(frozen=True)
class MicroBatches:
    """The rule of a run."""

    rows: int  # of an optimiser step, at most; fewer are padded
    parts: int = 1  # that rows are dealt to, side by side
    group_size: int = 1  # rows that share a prompt
    completion: int = 0  # most tokens after a prompt
    packed: bool = False  # completions lie side by side, in as little room as they need
    most_rows: int | None = None  # of a micro-batch
    most_tokens: int | None = None  # of a micro-batch; a single row may have more

    def cut(
        self, trajectories: Trajectories, rows: np.ndarray, *, rooms: list[Room] | None = None
    ) -> tuple[np.ndarray, Layout | None]:
        """Cut some rows of a batch.

        Args:
          trajectories: of the batch, on the host.
          rows: i32[R], rows of one group side by side.
          rooms: sizes of packed layouts that have their programs; a new one is added. None: rows
            are computed as they are, without a layout.

        Returns:
          i32[k,m] row numbers, those of a part together and padded with ones beyond the batch; and
          the layout of these splits.
        """
        N, T = trajectories.tokens.shape
        for size in self._sizes():
            width = round_up(max(len(rows), self.rows), size * self.parts)
            splits = pad_rows(rows, width, N).reshape(-1, size)
            layout = None if rooms is None else self._layout(trajectories, splits, rooms)
            tokens = size * T if layout is None else layout.room.positions
            if self.most_tokens is None or tokens <= self.most_tokens or size == 1:
                break
        if rooms is not None and layout is not None and self.packed and layout.room not in rooms:
            rooms.append(layout.room)
        return splits, layout

    @property
    def largest(self) -> int:
        """Rows of a micro-batch, unless tokens ask for fewer."""
        each = -(-self.rows // self.parts)
        return min(self.most_rows or each, each)

    def _sizes(self) -> Iterator[int]:
        """Rows of a micro-batch, the most first; few, as each is a program of its own."""
        size = self.largest
        while size > 1:
            yield size
            size = -(-size // 2)
        yield 1

    def _layout(self, trajectories: Trajectories, splits: np.ndarray, rooms: list[Room]) -> Layout:
        if not self.packed:
            prompt = trajectories.tokens.shape[1] - self.completion
            room = room_of(splits.shape[1], self.group_size, prompt, self.completion)
            return plan(trajectories, splits, room=room)
        most = self.most_tokens
        known = [room for room in rooms if most is None or room.positions <= most]
        return plan(trajectories, splits, known=known)


def in_layouts(modules: Mapping[str, Any]) -> bool:
    """Whether all of these models compute over layouts; else they compute rows."""
    return all(isinstance(module, LanguageModel | ValueModel) for module in modules.values())


def room_of(micro_batch: int, group_size: int, prompt: int, completion: int) -> Room:
    """Room for any micro-batch of a step, without packing: as many bins as it has rows.

    A step's rows are whole groups, so that one whose size divides that of a group, or the other
    way round, never has a part of a group more than it must.

    Args:
      micro_batch: rows of it.
      group_size: rows that share a prompt.
      prompt, completion: the longest, in tokens.
    """
    aligned = micro_batch % group_size == 0 or group_size % micro_batch == 0
    prompts = max(micro_batch // group_size, 1) if aligned else -(-micro_batch // group_size) + 1
    bins = min(micro_batch, group_size)
    return Room(prompts=prompts, bins=bins, prompt=prompt, bin=completion)
