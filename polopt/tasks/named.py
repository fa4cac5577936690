"""A task from plain settings, as a command line or a configuration file gives them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from polopt.errors import PoloptError
from polopt.tasks import calculator, chain_sum
from polopt.tasks.isolate import IsolatedReward, Limits
from polopt.tasks.jsonl import jsonl_task
from polopt.tasks.reasoning import reasoning_task
from polopt.tasks.score import user_reward
from polopt.tasks.task import Reward, Task

_SIZES = {chain_sum.FAMILY: chain_sum.SIZE}  # what the embedded model can do
_OWN = {calculator.NAME: calculator.calculator_task}  # the rest are families of reasoning-gym


def load_task(
    family: str = chain_sum.FAMILY,
    *,
    task_args: Sequence[str] | Mapping[str, Any] = (),
    data: str | Path | None = None,
    reward: str | Callable[..., Any] | None = None,
    held_out: int = 256,
    seed: int = 0,
    limits: Limits | None = None,
) -> Task:
    """A family of problems, or a file of them; with its own reward or the user's.

    Args:
      family: name in reasoning-gym; "chain_sum" starts from the size of the embedded model
        (2 to 3 terms of 1 to 2 digits), all others from their own defaults. Or "calculator", the
        same sums worked over several turns with a tool (`calculator_task`).
      task_args: settings of the family, as "name=value" or as a mapping.
      data: a JSONL file (see `jsonl_task`), which replaces the family.
      reward: "file.py:name" or "module:name", called in a process of its own under `limits`; or
        a function, called here. Called with prompt, completion, answer and metadata.
      held_out: held-out problems; of a file, at most so many.
      seed: of the training stream.
      limits: of a reward that is given by name.

    Raises:
      PoloptError: as `reasoning_task`, `jsonl_task` and `load_function`.
    """
    if data is not None:
        task = jsonl_task(data, seed=seed)
        task = dataclasses.replace(task, held_out=task.held_out[:held_out])
    else:
        overrides = {**_SIZES.get(family, {}), **_settings(task_args)}
        make = _OWN.get(family, functools.partial(reasoning_task, family))
        task = make(overrides, seed=seed, held_out=held_out)
    if reward is None:
        return task
    named = reward if isinstance(reward, str) else getattr(reward, "__name__", repr(reward))
    return dataclasses.replace(
        task,
        reward=_reward(reward, named, limits),
        instruction="",  # what form the reward wants is the user's to say
        solutions={},
        settings={**task.settings, "reward": named},
    )


def _reward(reward: str | Callable[..., Any], named: str, limits: Limits | None) -> Reward:
    if isinstance(reward, str):
        return IsolatedReward(reward, limits)
    return user_reward(reward, named)


def _settings(task_args: Sequence[str] | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(task_args, Mapping):
        return dict(task_args)
    settings = {}
    for item in task_args:
        name, equals, value = item.partition("=")
        if not (name and equals and value):
            raise PoloptError(f"task setting {item!r} is not of the form name=value")
        settings[name] = value
    return settings
