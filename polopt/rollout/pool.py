"""What a run remembers of the prompts of a finite data set: host side, part of its checkpoints.

A pool is a dictionary of arrays with one entry per prompt. Prompts are drawn from it by weights;
a draw is addressed by a seed, so it depends on nothing but the seed and what is remembered.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from polopt.errors import PoloptError
from polopt.rollout.measure import correct
from polopt.trajectory.sampling import Prioritise, Sampling
from polopt.types import Trajectories

Pool = dict[str, np.ndarray]

SEEN, RIGHT, VALUE = "seen", "right", "value"


def new_pool(sampling: Sampling, prompts: int) -> Pool:
    """The memory of a sampling spec before the first rollout, empty for most.

    Args:
      prompts: how many distinct ones there are.
    """
    pool: Pool = {}
    if sampling.prioritise:
        pool |= {SEEN: np.zeros(prompts), RIGHT: np.zeros(prompts)}
    if sampling.companion and sampling.companion.cache:
        pool[VALUE] = np.full(prompts, np.nan, np.float32)
    return pool


def pick(spec: Prioritise, pool: Pool, count: int, seed: Sequence[int]) -> np.ndarray:
    """i64[count]: distinct prompts, drawn one after the other in proportion to their weights.

    Args:
      seed: of the draw, e.g. (run seed, next prompt).

    Raises:
      PoloptError: weights that are none, or fewer than `count` prompts with a weight above 0.
    """
    seen = pool[SEEN]
    weight = np.asarray(spec.by((pool[RIGHT] + 0.5) / (seen + 1), seen), np.float64)
    if weight.shape != seen.shape or not (np.isfinite(weight).all() and (weight >= 0).all()):
        raise PoloptError(
            f"prioritise: weights have shape {weight.shape} for {len(seen)} prompts and lie in "
            f"[{weight.min():g}, {weight.max():g}]: give one finite number of at least 0 for each"
        )
    if (weight > 0).sum() < count:
        raise PoloptError(
            f"prioritise: {(weight > 0).sum()} of {len(seen)} prompts have a weight above 0, and "
            f"a rollout draws {count} different ones"
        )
    # The first arrivals of independent exponential clocks with these rates (Efraimidis, Spirakis).
    clocks = np.random.default_rng(seed).exponential(size=len(seen))
    arrival = np.divide(clocks, weight, out=np.full(len(seen), np.inf), where=weight > 0)
    return np.argsort(arrival, kind="stable")[:count]


def learn(spec: Prioritise, pool: Pool, batch: Trajectories) -> Pool:
    """The pool after a batch: what its prompts knew fades, what was scored is added."""
    prompt, scored = np.asarray(batch.prompt), np.asarray(batch.scored)
    seen, right = pool[SEEN].copy(), pool[RIGHT].copy()
    shown = np.unique(prompt)
    for total, new in ((seen, scored), (right, correct(batch))):
        total[shown] *= spec.decay
        np.add.at(total, prompt, new.astype(np.float64))
    return {**pool, SEEN: seen, RIGHT: right}
