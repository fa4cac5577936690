"""Held-out evaluation, and completions as people read them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from polopt.models.kernels import AUTO
from polopt.rollout.collect import Collector, Rollout
from polopt.rollout.measure import correct, outcome
from polopt.rollout.rows import Sampler
from polopt.tasks.task import Example, Task
from polopt.train.config import SampleConfig
from polopt.train.intervals import wilson
from polopt.train.policy import Policy, attending, instructed, load_policy
from polopt.train.setup import (
    collector_of,
    completer,
    decoding_of,
    drawing_of,
    task_of,
)
from polopt.train.sinks import SampleView
from polopt.trajectory.sampling import Sampling
from polopt.types import Stop, Trajectories, truncated


def evaluation(
    collector: Collector, sample: Sampler, problems: Sequence[Example], shown: int
) -> tuple[dict[str, float], list[SampleView]]:
    """One completion per held-out problem: accuracy with its 95 % interval, and a few to read.

    The draws are addressed by the problem's index, so every evaluation of a run uses the same
    random numbers: what changes is the policy.
    """
    trajectories, completions = complete_all(collector, sample, problems, 1)
    right = correct(trajectories)
    low, high = wilson(float(right.sum()), len(problems))
    metrics = {
        "eval/accuracy": float(right.mean()),
        "eval/accuracy_low": low,
        "eval/accuracy_high": high,
        "eval/problems": len(problems),
        "eval/reward": float(outcome(trajectories).mean()),
        "eval/length": float(trajectories.action_mask.sum(1).mean()),
        "eval/truncated": float(truncated(trajectories.stop).mean()),
    }
    return metrics, _views(trajectories, list(problems), completions, range(shown))


def complete_all(
    collector: Collector, sample: Sampler, problems: Sequence[Example], samples: int
) -> tuple[Trajectories, list[str]]:
    """`samples` completions of every problem, verified."""
    ids = np.arange(len(problems) * samples, dtype=np.int32).reshape(-1, samples)
    drawn = collector.shares.drawn(len(problems))
    rows = collector.draw(sample, problems[drawn], ids[drawn])

    def written(share: slice) -> tuple[Trajectories, list[str]]:
        return collector.write(rows[share.start * samples : share.stop * samples])

    return collector.shares.written(len(problems), written)


def views(rollout: Rollout, rows: Sequence[int]) -> list[SampleView]:
    """Some rows of a rollout, to read."""
    return _views(rollout.trajectories, rollout.examples, rollout.completions, rows)


def _views(
    trajectories: Trajectories,
    examples: Sequence[Example],
    completions: Sequence[str],
    rows: Sequence[int],
) -> list[SampleView]:
    reward, right = outcome(trajectories), correct(trajectories)
    return [
        SampleView(
            prompt=examples[i].prompt,
            completion=completions[i],
            answer=examples[i].answer,
            reward=float(reward[i]),
            stop=Stop(int(trajectories.stop[i])).name,
            correct=bool(right[i]),
        )
        for i in rows
        if i < len(examples)
    ]


def complete(config: SampleConfig) -> list[list[SampleView]]:
    """Sample a model on held-out problems: the completions of each problem."""
    with task_of(config) as task:
        policy = instructed(load_policy(config.model), config.system, task.instruction)
        policy = attending(policy, AUTO, jax.default_backend())
        return _complete(config, policy, task)


def _complete(config: SampleConfig, policy: Policy, task: Task) -> list[list[SampleView]]:
    room = config.max_new_tokens or 32
    sampling = Sampling(group_size=config.samples)
    collector = collector_of(policy, task, sampling, room, config.temperature or 1.0)
    drawing = drawing_of(policy, decoding_of(config), collector)
    compiled = completer(policy.model, drawing, collector.turn_tokens)
    sample = _undealt(compiled, policy.params, jax.random.key(config.seed))
    problems = task.held_out[: config.problems]
    trajectories, completions = complete_all(collector, sample, problems, config.samples)
    rows = [problem for problem in problems for _ in range(config.samples)]
    flat = _views(trajectories, rows, completions, range(len(rows)))
    return [flat[i : i + config.samples] for i in range(0, len(flat), config.samples)]


def _undealt(compiled: Callable[..., Any], params: Any, key: Any) -> Sampler:
    """The sampler of one device."""

    def sample(prompts: Any, lengths: Any, ids: Any, offset: Any = None, /) -> Any:
        offset = np.zeros_like(ids) if offset is None else offset
        return compiled(params, key, prompts, lengths, ids, offset)

    return sample
