"""What a rollout says of a run: metrics read off the record, host side."""

from __future__ import annotations

import jax
import numpy as np

from polopt.tasks.score import SINGLE
from polopt.types import Array, Stop, Trajectories, truncated

_ROUNDING = 1e-6  # float32 parts of 0.1, 0.2 and 0.7 do not quite make 1


def outcome(trajectories: Trajectories) -> np.ndarray:
    """f64[N]: the recorded reward of each row, all components summed."""
    parts = trajectories.reward_parts.values()
    return sum((_total(part) for part in parts), np.zeros(len(trajectories.length)))


def _total(part: Array) -> np.ndarray:
    """f64[N]: what a component comes to in each row; large rewards do not overflow."""
    return np.asarray(part).sum(1, dtype=np.float64)


def correct(trajectories: Trajectories) -> np.ndarray:
    """bool[N]: the component `correct`, or else `score`, or else the whole reward reaches 1."""
    parts = trajectories.reward_parts
    named = next((parts[name] for name in ("correct", SINGLE) if name in parts), None)
    judged = outcome(trajectories) if named is None else _total(named)
    return trajectories.scored & (judged >= 1 - _ROUNDING)


def staleness(trajectories: Trajectories, step: int) -> float:
    """How many steps the weights that drew lie behind those of `step`: a mean over tokens.

    Tokens of other models do not count; 0 if there are no others.
    """
    own = np.asarray(trajectories.action_mask) & (np.asarray(trajectories.version) >= 0)
    behind = step - np.asarray(trajectories.version)[own]
    return float(behind.mean()) if behind.size else 0.0


def rollout_metrics(trajectories: Trajectories) -> dict[str, float]:
    """Flat metrics of a batch, named as in the run's schema.

    Where another model wrote some rows, all but `rollout/tokens` speak of the policy's.

    `policy/entropy` is −mean(log-probability) of the sampled tokens: an unbiased estimate that
    costs nothing, under the tempered, unfiltered distribution.
    """
    drawn, trajectories = int(np.sum(trajectories.action_mask)), _of_policy(trajectories)
    scored, reward = np.asarray(trajectories.scored), outcome(trajectories)
    tokens = np.asarray(trajectories.action_mask)
    length = tokens.sum(1)
    logp = np.asarray(trajectories.logp_sampler) + np.asarray(trajectories.log_keep)
    seen = reward[scored]
    metrics = {
        "reward/mean": float(seen.mean()) if seen.size else 0.0,
        "reward/std": float(seen.std()) if seen.size else 0.0,
        "reward/unscored": float(1 - scored.mean()),
        "rollout/length": float(length.mean()),
        "rollout/length_max": int(length.max()),
        "rollout/truncated": float(np.asarray(truncated(np.asarray(trajectories.stop))).mean()),
        "rollout/tokens": drawn,
        "rollout/turns": float((np.asarray(trajectories.turn).max(1) + 1).mean()),
        "rollout/tool_errors": float((np.asarray(trajectories.stop) == Stop.TOOL_ERROR).mean()),
        "policy/entropy": float(-logp[tokens].mean()) if tokens.any() else 0.0,
    }
    for name, part in trajectories.reward_parts.items():
        total = _total(part)[scored]
        metrics[f"reward/part/{name}"] = float(total.mean()) if total.size else 0.0
    return {**metrics, **_groups(trajectories, reward)}


def _of_policy(trajectories: Trajectories) -> Trajectories:
    """The rows that the policy wrote alone; all of them if it wrote none so."""
    other = np.asarray(trajectories.action_mask) & (np.asarray(trajectories.version) < 0)
    own = ~other.any(axis=1)
    if own.all() or not own.any():
        return trajectories
    return jax.tree.map(lambda x: np.asarray(x)[own], trajectories)


def _groups(trajectories: Trajectories, reward: np.ndarray) -> dict[str, float]:
    ids, right = np.asarray(trajectories.group), correct(trajectories)
    scored = np.asarray(trajectories.scored)
    groups = np.unique(ids[ids >= 0])
    if len(groups) == (ids >= 0).sum():  # groups of one have no spread to speak of
        return {}
    known = [reward[(ids == g) & scored] for g in groups]
    spread = [np.ptp(x) if x.size else 0 for x in known]
    share = [right[ids == g].mean() for g in groups]
    return {
        "groups/zero_spread": float(np.mean([s == 0 for s in spread])),
        "groups/solved": float(np.mean([s == 1 for s in share])),
        "groups/unsolved": float(np.mean([s == 0 for s in share])),
    }
