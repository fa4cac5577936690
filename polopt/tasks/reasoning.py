"""Every family of reasoning-gym as a task whose training and held-out problems never meet.

A family draws its problem number `i` from `Random(seed + i)`, so that two data sets of different
seeds share almost all their problems. Here one line of *addresses* replaces seed and index: its
beginning is for held-out problems, and training streams run through the rest of it, each seed from
a starting point of its own. Small families repeat themselves at different addresses; a training
problem whose text is in the held-out set is therefore replaced by one at another address.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import io
import warnings
from collections.abc import Mapping
from typing import Any

from polopt.errors import PoloptError, did_you_mean, missing_extra
from polopt.tasks import chain_sum
from polopt.tasks.answer import Extractor, answered, instruction, tagged_answer
from polopt.tasks.score import SINGLE
from polopt.tasks.task import ANSWER, WORKED, Abstained, Example, Parts, Solution, Task

_FIRST = 1 << 22  # first address of training streams
_ROOM = (1 << 32) - _FIRST  # addresses of training: some families seed generators of 32 bits
_SPREAD = 2_654_435_769  # 2**32 / golden ratio: starting points of near seeds are far apart
_CHUNK = 1024  # problems per data set object: a few families prepare them all at once
_STEP = 15_485_863  # prime; from an address whose problem is held out to the next candidate
_TRIES = 100


def reasoning_task(
    family: str,
    overrides: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
    held_out: int = 256,
    extract: Extractor = tagged_answer,
) -> Task:
    """A family of problems, endless, scored by the family itself.

    Args:
      family: name in reasoning-gym, such as "chain_sum".
      overrides: fields of the family's configuration; strings are read as Python literals.
      seed: chooses the training stream; the held-out set is the same for all seeds.
      held_out: number of held-out problems, all different; fewer are the beginning of more.
      extract: finds the answer in a completion; where it finds none, the score is 0.

    Returns:
      A task whose reward has the one component "score", in [0, 1].

    Raises:
      PoloptError: unknown family or field, a configuration that the family refuses, or a family
        with too few different problems.
    """
    if seed < 0:
        raise PoloptError(f"task seed is {seed}: give 0 or more")
    source = _Source(family, overrides or {})
    kept = _held_out(source, held_out)
    texts = frozenset(example.prompt for example in kept)
    settings = {
        "family": family,
        "overrides": dict(overrides or {}),
        "seed": seed,
        "held_out": held_out,
    }
    return Task(
        name=family,
        train=functools.partial(_train, source, texts, seed * _SPREAD),
        held_out=kept,
        reward=functools.partial(_reward, source, extract),
        answer=extract,
        instruction=instruction(extract),
        solutions=_solutions(family) if extract is tagged_answer else {},
        settings=settings,
    )


def families() -> list[str]:
    """Names of all families of reasoning-gym."""
    return sorted(_library().factory.DATASETS)


class _Source:
    """Problems of one configured family by address."""

    def __init__(self, family: str, overrides: Mapping[str, Any]):
        self.family = family
        self._config = _checked_config(family, overrides)
        self._chunk = functools.lru_cache(maxsize=4)(self._make)
        self._chunk(0)  # a configuration that the family refuses is refused now

    def entry(self, address: int) -> dict[str, Any]:
        family = self._chunk(address // _CHUNK)
        with contextlib.redirect_stdout(io.StringIO()):  # one family prints while it draws
            return family[address % _CHUNK]

    def score(self, answer: str, entry: Mapping[str, Any]) -> float:
        return float(self._chunk(0).score_answer(answer, entry))

    def _make(self, chunk: int) -> Any:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # one family leaves a file open
                return _library().create_dataset(
                    self.family, seed=chunk * _CHUNK, size=_CHUNK, **self._config
                )
        except (AssertionError, TypeError, ValueError, AttributeError, KeyError) as error:
            given = ", ".join(f"{key}={value!r}" for key, value in self._config.items())
            raise PoloptError(
                f"{self.family} refuses the configuration ({given}): {error}"
            ) from error


def _held_out(source: _Source, count: int) -> tuple[Example, ...]:
    found: dict[str, Example] = {}
    for address in range(4 * count + _TRIES):
        if len(found) == count:
            break
        entry = source.entry(address)
        if entry["question"] not in found:
            found[entry["question"]] = _example(entry, len(found))
    if len(found) < count:
        raise PoloptError(
            f"{source.family} shows only {len(found)} different problems in "
            f"{4 * count + _TRIES}: ask for at most {len(found) // 2} held-out ones"
        )
    return tuple(found.values())


def _train(source: _Source, held_out: frozenset[str], start: int, index: int) -> Example:
    if index < 0:
        raise PoloptError(f"training index is {index}: give 0 or more")
    for attempt in range(_TRIES):
        entry = source.entry(_FIRST + (start + index + attempt * _STEP) % _ROOM)
        if entry["question"] not in held_out:
            return _example(entry, index)
    raise PoloptError(
        f"{source.family}: {_TRIES} problems in a row are in the held-out set, so it holds nearly "
        "all there are; hold fewer out"
    )


def _solutions(family: str) -> dict[str, Solution]:
    worked = {WORKED: chain_sum.worked} if family == chain_sum.FAMILY else {}
    return {ANSWER: answered, **worked}


def _example(entry: Mapping[str, Any], index: int) -> Example:
    answer = entry["answer"]  # None in families where many answers are right
    return Example(
        prompt=entry["question"],
        answer="" if answer is None else str(answer),
        index=index,
        metadata={**entry["metadata"], "entry": entry},
    )


def _reward(
    source: _Source, extract: Extractor, completion: str, example: Example
) -> Parts | Abstained:
    answer = extract(completion)
    if answer is None:
        return {SINGLE: 0.0}
    entry = example.metadata["entry"]
    try:
        return {SINGLE: source.score(answer, entry)}
    except Exception as error:
        if entry["answer"] is None:
            return {SINGLE: 0.0}
        try:
            source.score(entry["answer"], entry)
        except Exception:
            raise PoloptError(
                f"{source.family} cannot score its own answer {entry['answer']!r}: {error}"
            ) from error
        return {SINGLE: 0.0}  # a family whose parser stumbles over a malformed answer


def _checked_config(family: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    library = _library()
    known = library.factory.DATASETS
    if family not in known:
        raise PoloptError(
            f"reasoning-gym has no family {family!r}{did_you_mean(family, known)}"
            f" ({len(known)} families: polopt.tasks.families())"
        )
    fields = {field.name: field for field in dataclasses.fields(known[family][1])}
    for fixed in ("seed", "size"):
        fields.pop(fixed, None)
    config = {}
    for key, value in overrides.items():
        if key not in fields:
            raise PoloptError(
                f"{family} has no setting {key!r}{did_you_mean(key, fields)}; "
                f"it has {', '.join(fields)}"
            )
        config[key] = _literal(value) if isinstance(value, str) else value
    if family == "composite":
        return _mixture(config)
    return config


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _mixture(config: dict[str, Any]) -> dict[str, Any]:
    """The family `composite` mixes others: names, or dicts of name, weight and config."""
    chosen = config.get("datasets")
    if not isinstance(chosen, list | tuple) or not chosen:
        raise PoloptError("composite needs datasets=['chain_sum', ...]: the families to mix")
    specs = []
    for item in chosen:
        spec: dict[str, Any] = {"name": item} if isinstance(item, str) else dict(item)
        if "name" not in spec or set(spec) - {"name", "weight", "config"}:
            raise PoloptError(
                f"composite: {item!r} is no part of a mixture; "
                "give a family's name, or a dict of name, weight and config"
            )
        inner = _checked_config(spec["name"], spec.get("config", {}))
        kind = _library().composite.DatasetSpec
        specs.append(kind(name=spec["name"], weight=spec.get("weight", 1.0), config=inner))
    return {**config, "datasets": specs}


@functools.cache
def _library() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a dependency compares strings with `is`
            import reasoning_gym
            import reasoning_gym.composite
            import reasoning_gym.factory
    except ModuleNotFoundError as error:
        raise missing_extra("reasoning-gym", "a reasoning-gym task") from error
    return reasoning_gym
