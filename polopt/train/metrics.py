"""What a training step says in numbers."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax

from polopt.rollout.collect import Rollout
from polopt.rollout.measure import rollout_metrics, staleness
from polopt.train.record import SCHEMA
from polopt.types import Info, info_values, merge_info


def of_rollout(rollout: Rollout, step: int, *, refills: bool) -> dict[str, float]:
    """Flat metrics of the batch that is learned from.

    Args:
      step: training steps before this one.
      refills: whether groups are drawn again, so that rounds of it are counted.
    """
    return {
        **rollout_metrics(rollout.trajectories),
        "rollout/staleness": staleness(rollout.trajectories, step),
        **({"groups/refills": rollout.rounds - 1} if refills else {}),
        **{f"time/{name}": seconds for name, seconds in rollout.seconds.items()},
    }


def of_updates(steps: Sequence[Info]) -> dict[str, float]:
    """Flat metrics of a batch's optimiser steps; what pieces report goes under `method/`."""
    # Later optimiser steps move the policy: only the first one speaks of the sampler.
    first = {name: entry for name, entry in steps[0].items() if name.startswith("rollout/")}
    merged = {**functools.reduce(merge_info, steps), **first}
    values = {name: float(x) for name, x in jax.device_get(info_values(merged)).items()}
    return {name if name in SCHEMA else f"method/{name}": x for name, x in values.items()}
