"""What models say of a rollout before it is learned from."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from polopt.columns import name_of
from polopt.models.layout import Room
from polopt.rollout.collect import Rollout
from polopt.rollout.pool import Pool
from polopt.rollout.recall import drift, recalled
from polopt.train.hindsight import in_place, told
from polopt.train.micro_batches import MicroBatches, in_layouts
from polopt.train.models import DRIFT, Roles
from polopt.train.parallel import Parallel
from polopt.train.policy import Policy
from polopt.train.routers import router_metrics
from polopt.train.update import Params, make_scorer
from polopt.types import Trajectories


class Scoring:
    """The compiled scorers of a run."""

    def __init__(
        self, roles: Roles, policy: Policy, parallel: Parallel, micro_batches: MicroBatches
    ) -> None:
        """Compile nothing yet."""
        self._roles, self._policy, self._parallel = roles, policy, parallel
        self._micro_batches = micro_batches
        read, wanted = roles.chosen(roles.scoring()), tuple(roles.columns.values())
        self._in_layouts = in_layouts(read)
        shards = parallel.shards
        self._scorer = parallel.rows(make_scorer(read, wanted, shards=shards), dealt=2)
        own = make_scorer({"policy": policy.model}, ("logp",), shards=shards)
        self._own = parallel.rows(own, dealt=2)

    def columns(
        self, everyone: Params, rollout: Rollout, pool: Pool, rooms: list[Room]
    ) -> Trajectories:
        """The rollout's trajectories with the columns that the pieces need.

        Args:
          everyone: parameters of all models.
          rollout: as it was collected.
          pool: what was remembered of its prompts before it.
          rooms: see `MicroBatches.cut`.
        """
        trajectories, roles = rollout.trajectories, self._roles
        made: dict[str, Any] = {}
        if roles.columns:
            N, known = len(trajectories.length), rooms if self._in_layouts else None
            splits, layout = self._micro_batches.cut(trajectories, np.arange(N), rooms=known)
            out = self._scorer(everyone, trajectories, splits, layout)
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

    def routed(self, params: Any, trajectories: Trajectories) -> dict[str, float]:
        """Metrics of the policy's routers; {} without experts."""
        model = self._policy.model
        if model.config.experts is None:
            return {}
        return router_metrics(model, self._parallel.single(params), trajectories)

    def _logp(self, params: Params, trajectories: Trajectories) -> np.ndarray:
        """f32[N,T]: what a policy says of a batch."""
        N = len(trajectories.length)
        splits, _ = self._micro_batches.cut(trajectories, np.arange(N))
        return np.asarray(self._own({"policy": params}, trajectories, splits, None)["logp"][:N])
