"""A file of prompts and answers, one JSON object per line, as a task."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polopt.errors import PoloptError
from polopt.tasks.answer import Extractor, answered, instruction, tagged_answer
from polopt.tasks.json_lines import check_text, kind, objects, read_lines
from polopt.tasks.score import SINGLE
from polopt.tasks.task import ANSWER, Abstained, Example, Parts, Reward, Task

_FIELDS = ("prompt", "answer")


def jsonl_task(
    path: str | Path,
    *,
    seed: int = 0,
    held_out: float = 0.1,
    reward: Reward | None = None,
    extract: Extractor = tagged_answer,
) -> Task:
    """Problems from lines ``{"prompt": ..., "answer": ...}``; other fields become metadata.

    A prompt's side is decided by a hash of its text: it stays when lines are added or reordered,
    and all copies of a prompt are on the same side. Training index i walks the training lines in
    an order shuffled anew each time round.

    Args:
      path: UTF-8 file.
      seed: of the training order.
      held_out: expected share of prompts that are held out, in (0, 1).
      reward: scores completions; by default 1 when the extracted answer is the line's, else 0.
      extract: finds the answer in a completion for the default reward.

    Raises:
      PoloptError: the file cannot be read, is empty, has a malformed line (named by number), or
        has fewer than two different prompts.
    """
    if not 0 < held_out < 1:
        raise PoloptError(f"held_out is {held_out!r}: give a share between 0 and 1")
    raw = read_lines(path)
    rows = [_row(value, where) for where, value in objects(raw, path)]
    outside = _outside({row.prompt for row in rows}, held_out, str(path))
    train = _numbered([row for row in rows if row.prompt not in outside])
    settings = {
        "file": str(path),
        "sha256": hashlib.sha256(raw).hexdigest(),
        "seed": seed,
        "held_out": held_out,
    }
    return Task(
        name=Path(path).stem,
        train=functools.partial(_train, train, seed),
        held_out=_numbered([row for row in rows if row.prompt in outside]),
        reward=reward or functools.partial(_exact, extract),
        answer=extract,
        instruction=instruction(extract) if reward is None else "",
        solutions={ANSWER: answered} if reward is None and extract is tagged_answer else {},
        size=len(train),
        settings=settings,
    )


def _row(value: dict[str, Any], where: str) -> Example:
    for name in _FIELDS:
        if name not in value:
            raise PoloptError(f"{where}: no field {name!r}; it has {', '.join(value) or 'none'}")
        if not isinstance(value[name], str):
            raise PoloptError(f"{where}: {name!r} is a {kind(value[name])}, not a string")
        check_text(value[name], name, where)
    if not value["prompt"].strip():
        raise PoloptError(f"{where}: 'prompt' is blank")
    rest = {key: item for key, item in value.items() if key not in _FIELDS}
    return Example(prompt=value["prompt"], answer=value["answer"], index=0, metadata=rest)


def _outside(prompts: set[str], share: float, path: str) -> set[str]:
    """The held-out prompts: those whose hash is in the lowest `share`, at least one."""
    if len(prompts) < 2:
        raise PoloptError(f"{path}: one prompt only; give at least two different ones")
    place = {prompt: hashlib.sha256(prompt.encode()).digest() for prompt in prompts}
    limit = int(share * (1 << 64))
    chosen = {p for p in prompts if int.from_bytes(place[p][:8], "big") < limit}
    if len(chosen) == len(prompts):
        chosen.remove(max(prompts, key=place.__getitem__))
    return chosen or {min(prompts, key=place.__getitem__)}


def _numbered(rows: Sequence[Example]) -> tuple[Example, ...]:
    return tuple(
        Example(prompt=row.prompt, answer=row.answer, index=i, metadata=row.metadata)
        for i, row in enumerate(rows)
    )


def _train(rows: tuple[Example, ...], seed: int, index: int) -> Example:
    if index < 0:
        raise PoloptError(f"training index is {index}: give 0 or more")
    turn, place = divmod(index, len(rows))
    return rows[_order(len(rows), seed, turn)[place]]


@functools.lru_cache(maxsize=4)
def _order(size: int, seed: int, turn: int) -> np.ndarray:
    return np.random.default_rng([seed, turn]).permutation(size)


def _exact(extract: Extractor, completion: str, example: Example) -> Parts | Abstained:
    return {SINGLE: float(extract(completion) == example.answer.strip())}
