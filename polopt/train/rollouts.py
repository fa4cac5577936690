"""The sampling side of a run: rollouts, of which one may be drawn ahead, and evaluations."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple

import jax

from polopt.rollout.collect import Collector, Cursor, Rollout
from polopt.rollout.pool import Pool
from polopt.tasks import Example
from polopt.train.evaluate import evaluation
from polopt.train.handover import Handover
from polopt.train.sinks import SampleView
from polopt.train.writers import Samplers

Models = Mapping[str, Any]  # parameters by the name of their model


class Weights(NamedTuple):
    """What a rollout is drawn with."""

    params: Models
    version: int  # training steps that made them
    seconds: float  # that it took to hand them over


class Rollouts:
    """Draws what the steps of a run learn from.

    Where sampling has devices of its own, `begin` draws the rollout of the next step in a thread
    while the caller learns from the present one. Draws are addressed by counters: they are the same
    whenever they are made, given the weights.
    """

    def __init__(
        self,
        collector: Collector,
        samplers: Samplers,
        handover: Handover,
        *,
        prompts: int,
        seed: int,
    ) -> None:
        """Compile nothing yet.

        Args:
          prompts: of a rollout.
          seed: of the run.
        """
        self.collector, self.samplers, self._handover = collector, samplers, handover
        self._prompts = prompts
        key = jax.random.key(seed)
        self._draws, self._held_out, self._beside = (jax.random.fold_in(key, i) for i in (0, 1, 5))
        self._begun: Future[Rollout] | None = None

    def take(self, params: Models, step: int, cursor: Cursor, pool: Pool) -> Rollout:
        """The rollout of a step: the one that was begun, or else one drawn now.

        Args:
          params: of all models, as they lie for training.
          step: training steps that made them.
          cursor: where the stream of prompts stands.
          pool: what is remembered of the prompts.
        """
        begun, self._begun = self._begun, None
        if begun is not None:
            return begun.result()
        return self._draw(self._weights(self._read(params), step), cursor, pool)

    def begin(self, params: Models, step: int, cursor: Cursor, pool: Pool) -> None:
        """Begin the rollout of the next step; arguments as in `take`.

        `params` may be donated when this returns.
        """
        weights = self._weights(self._read(params), step)
        thread = ThreadPoolExecutor(1, thread_name_prefix="rollout")
        self._begun = thread.submit(self._draw, weights, cursor, pool)
        thread.shutdown(wait=False)  # it ends when the rollout is drawn

    def drop(self) -> None:
        """Wait for a rollout that was begun, and forget it."""
        begun, self._begun = self._begun, None
        wait([begun] if begun else [])

    def evaluate(
        self, policy: Any, step: int, problems: Sequence[Example], shown: int
    ) -> tuple[dict[str, float], list[SampleView]]:
        """Metrics of held-out problems under a policy, and a few completions to read."""
        start = time.perf_counter()
        params = self._weights({"policy": policy}, step).params["policy"]
        sample = functools.partial(self.samplers.policy, params, self._held_out)
        metrics, views = evaluation(self.collector, sample, problems, shown)
        return {**metrics, "time/eval": time.perf_counter() - start}, views

    def _read(self, params: Models) -> Models:
        return {name: params[name] for name in self.samplers.read}

    def _weights(self, params: Models, step: int) -> Weights:
        start = time.perf_counter()
        there = self._handover(params)
        version = self.samplers.ready(there["policy"], step)
        return Weights(there, version, time.perf_counter() - start)

    def _draw(self, weights: Weights, cursor: Cursor, pool: Pool) -> Rollout:
        params, version, seconds = weights
        writers = self.samplers.writers(params, self._draws, self._beside, version)
        rollout = self.collector.collect(writers, self._prompts, cursor, pool)
        return dataclasses.replace(rollout, seconds={**rollout.seconds, "handover": seconds})
