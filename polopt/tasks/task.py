"""What a task is: problems addressed by an index, a held-out set, and a verifiable reward."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from polopt.tasks.environment import Environment


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """One problem.

    `index` addresses it in its task: a training index, or the place in the held-out set.
    """

    prompt: str
    answer: str  # the reference; empty where the reward needs none
    index: int
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Abstained:
    """The reward has no opinion on a sample: it enters no baseline and earns no credit."""

    reason: str


def abstain(reason: str) -> Abstained:
    """What a reward function returns, on purpose, for a sample that it cannot judge.

    >>> abstain("no unit test ran")
    Abstained(reason='no unit test ran')
    """
    return Abstained(reason)


Parts = dict[str, float]  # component name -> finite value; the reward is their weighted sum
Reward = Callable[[str, Example], Parts | Abstained]  # reward(completion text, example)
Solution = Callable[[Example], str]  # a right completion, as a model would write it
ANSWER, WORKED = "answer", "worked"  # the result alone; the way to it first


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """Where prompts and rewards come from.

    `train(i)` is a pure function of `i >= 0`, so that a run resumes at any index. No prompt of
    `held_out` is ever returned by it. `reward` judges the outcome: the text after the prompt,
    observations included where there is an environment. `instruction` is the form of an answer, as
    models with a chat template are told it, and `solutions` are completions that have it.
    """

    name: str
    train: Callable[[int], Example]
    held_out: tuple[Example, ...]
    reward: Reward
    answer: Callable[[str], str | None] | None = None  # finds it in a text; None: nothing does
    environment: Environment | None = None  # None: one completion per prompt
    instruction: str = ""
    solutions: Mapping[str, Solution] = dataclasses.field(default_factory=dict)  # of ANSWER, WORKED
    size: int | None = None  # distinct training examples, None when the stream is endless
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # JSON: rebuilds the task
