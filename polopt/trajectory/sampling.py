"""Which trajectories are drawn, and how often a batch is used: static descriptions.

They change p_θ(τ), so they belong to the trajectory side. The rollout reads `Sampling`, the
training loop reads `Update`; the algebra only carries them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable


@dataclasses.dataclass(frozen=True, kw_only=True)
class Refill:
    """Sample again until enough groups pass a test (DAPO's dynamic sampling, 2503.14476).

    Attributes:
      by: `f(trajectories) -> bool[N]`, True on rows of groups worth keeping.
      max_rounds: how often to sample at the most.
      surplus: groups drawn per missing group in each round.
      short: what to do when rounds run out: "train" on what there is, or "error".
    """

    by: Callable
    max_rounds: int = 10
    surplus: float = 1.0
    short: str = "train"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """Which trajectories are drawn for a prompt.

    Attributes:
      group_size: samples per prompt, G.
      refill: sample again until enough groups pass.
      companion: "greedy" adds one greedy completion per prompt, scored but not trained on; its
        return is the column `greedy_return`.
    """

    group_size: int = 1
    refill: Refill | None = None
    companion: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Update:
    """How a rollout batch is used.

    Attributes:
      epochs: passes over the batch.
      minibatches: optimiser steps per pass.
      reset_optimizer: start each rollout with a fresh optimiser state.
      reference: "frozen", or "previous" (the policy at the start of each rollout).
    """

    epochs: int = 1
    minibatches: int = 1
    reset_optimizer: bool = False
    reference: str = "frozen"
