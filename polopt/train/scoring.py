"""What models say of a rollout before it is learned from, and how its rows are computed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from polopt.columns import name_of
from polopt.models import LanguageModel, ValueModel
from polopt.models.layout import Layout, Room, plan
from polopt.rollout.collect import Rollout
from polopt.rollout.pool import Pool
from polopt.rollout.recall import drift, recalled
from polopt.train.hindsight import in_place, told
from polopt.train.models import DRIFT, Roles
from polopt.train.parallel import Parallel
from polopt.train.policy import Policy
from polopt.train.routers import router_metrics
from polopt.train.rows import pad_rows, round_up
from polopt.train.update import Params, make_scorer
from polopt.types import Trajectories


class Scoring:
    """The compiled scorers of a run, and the layout of its micro-batches."""

    def __init__(
        self,
        roles: Roles,
        policy: Policy,
        parallel: Parallel,
        *,
        micro_batch: int,
        group_size: int,
        room: int,
        packed: bool,
    ) -> None:
        """Compile nothing yet.

        Args:
          micro_batch: rows per forward pass.
          group_size: rows that share a prompt.
          room: tokens that may follow a prompt.
          packed: completions lie side by side, in as little room as they need.
        """
        self._roles, self._policy, self._parallel = roles, policy, parallel
        self._micro, self._size, self._room = micro_batch, group_size, room
        self._packed = packed
        read, wanted = roles.chosen(roles.scoring()), tuple(roles.columns.values())
        split = {"micro_batch": micro_batch, "shards": parallel.shards}
        self._scorer = parallel.rows(make_scorer(read, wanted, **split), dealt=2)
        own = make_scorer({"policy": policy.model}, ("logp",), **split)
        self._own = parallel.rows(own, dealt=2)

    def columns(
        self, everyone: Params, rollout: Rollout, pool: Pool, rooms: list[Room]
    ) -> Trajectories:
        """The rollout's trajectories with the columns that the pieces need.

        Args:
          everyone: parameters of all models.
          rollout: as it was collected.
          pool: what was remembered of its prompts before it.
          rooms: see `layout`.
        """
        trajectories, roles = rollout.trajectories, self._roles
        made: dict[str, Any] = {}
        if roles.columns:
            rows, N = self._all_rows(trajectories)
            layout = self.layout(trajectories, rows, roles.scoring(), rooms)
            out = self._scorer(everyone, trajectories, rows, layout)
            made = {name: out[name_of(want)][:N] for name, want in roles.columns.items()}
        if roles.drift:
            again, then = recalled(pool, trajectories)
            made[DRIFT] = drift(then, self._logp(everyone["policy"], again))
        if spec := roles.hindsight:
            longest = self._policy.model.config.max_length
            shown = told(spec, rollout, self._policy.tokenizer, longest)
            said = self._logp(everyone[spec.policy], shown)
            made["logp_teacher"] = in_place(said, shown, trajectories)
        columns = {**trajectories.columns, **jax.tree.map(np.asarray, made)}
        return dataclasses.replace(trajectories, columns=columns)

    def layout(
        self,
        trajectories: Trajectories,
        rows: np.ndarray,
        models: Sequence[str],
        rooms: list[Room],
    ) -> Layout | None:
        """Where the tokens of micro-batches are computed; None if a model computes rows only.

        Args:
          trajectories: of the batch.
          rows: i32[R], those of the micro-batches.
          models: that read them.
          rooms: sizes of packed layouts that have their programs; a new one is added.
        """
        read = self._roles.chosen(tuple(models)).values()
        if not all(isinstance(module, LanguageModel | ValueModel) for module in read):
            return None
        size, splits = self._size, len(rows) // self._micro
        if self._packed:
            layout = plan(trajectories, rows, splits=splits, known=rooms)
            if layout.room not in rooms:
                rooms.append(layout.room)
            return layout
        whole = self._micro % size == 0
        room = Room(
            prompts=self._micro // size if whole else -(-self._micro // size) + 1,
            bins=min(size, self._micro),
            prompt=trajectories.tokens.shape[1] - self._room,
            bin=self._room,
        )
        return plan(trajectories, rows, splits=splits, room=room)

    def routed(self, params: Any, trajectories: Trajectories) -> dict[str, float]:
        """Metrics of the policy's routers; {} without experts."""
        model = self._policy.model
        if model.config.experts is None:
            return {}
        return router_metrics(model, self._parallel.single(params), trajectories)

    def _logp(self, params: Params, trajectories: Trajectories) -> np.ndarray:
        """f32[N,T]: what a policy says of a batch."""
        rows, N = self._all_rows(trajectories)
        return np.asarray(self._own({"policy": params}, trajectories, rows, None)["logp"][:N])

    def _all_rows(self, trajectories: Trajectories) -> tuple[np.ndarray, int]:
        """Row numbers, padded until the devices share them evenly, and how many are real."""
        N = len(trajectories.length)
        return pad_rows(np.arange(N), round_up(N, self._micro * self._parallel.parts), N), N
