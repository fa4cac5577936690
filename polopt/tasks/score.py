"""The reward contract: a finite number, named finite numbers, or an explicit abstention.

Whatever else a reward function does is an error of one line that names the function and the
sample; nothing is swallowed, and nothing becomes 0 in silence.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from polopt.errors import PoloptError
from polopt.tasks.task import Abstained, Example, Parts, Reward

ACCEPTED = (
    "return a finite number, a dict of component names to finite numbers, "
    "or polopt.tasks.abstain(reason)"
)
SINGLE = "score"  # the component name of a reward that is one number


def user_reward(function: Callable[..., Any], name: str) -> Reward:
    """Wrap a user's `f(prompt=, completion=, answer=, metadata=)`; `name` is what errors call it.

    Raises:
      PoloptError: at a call, when the function raises or breaks the contract.
    """

    def reward(completion: str, example: Example) -> Parts | Abstained:
        try:
            value = function(
                prompt=example.prompt,
                completion=completion,
                answer=example.answer,
                metadata=example.metadata,
            )
        except Exception as error:
            words = " ".join(str(error).split())
            raise PoloptError(
                f"reward function {name} raised {type(error).__name__} "
                f"on {sample_name(completion, example)}: {words}"
            ) from error
        return checked(value, name, completion, example)

    return reward


def checked(value: Any, name: str, completion: str, example: Example) -> Parts | Abstained:
    """The components of what a reward returned, or the one-line error."""
    if isinstance(value, Abstained):
        return value
    parts = value if isinstance(value, Mapping) else {SINGLE: value}
    where = f"reward function {name} on {sample_name(completion, example)}"
    if not parts:
        raise PoloptError(f"{where} returned an empty dict; {ACCEPTED}")
    for component, number in parts.items():
        if not isinstance(component, str):
            raise PoloptError(f"{where}: component name {component!r} is not a string; {ACCEPTED}")
        wrong = _fault(number)
        if wrong:
            of = "" if parts is not value else f" for component {component!r}"
            raise PoloptError(f"{where} returned {wrong}{of}; {ACCEPTED}")
    return {component: float(number) for component, number in parts.items()}


def sample_name(completion: str, example: Example) -> str:
    """How errors call a sample: its index and the first 80 characters of the completion.

    >>> sample_name("7", Example(prompt="3 + 4 =", answer="7", index=17))
    'sample 17 ("7")'
    """
    return f'sample {example.index} ("{_one_line(completion[:80])}")'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
    """Rewards of N samples."""

    parts: dict[str, np.ndarray]  # f64[N] each; 0 where the reward abstained
    scored: np.ndarray  # bool[N]
    reasons: tuple[str, ...]  # why, for each sample that is not scored, in order


def score_all(reward: Reward, completions: Sequence[str], examples: Sequence[Example]) -> Scores:
    """Score sample n's completion against `examples[n]`, one after another.

    Raises:
      PoloptError: the lengths differ, a reward breaks the contract, or samples of one batch have
        different components.
    """
    if len(completions) != len(examples):
        raise PoloptError(f"{len(completions)} completions for {len(examples)} examples")
    results = [reward(text, example) for text, example in zip(completions, examples, strict=True)]
    rows = [(n, result) for n, result in enumerate(results) if not isinstance(result, Abstained)]
    names = list(rows[0][1]) if rows else []
    for n, result in rows:
        if set(result) != set(names):
            raise PoloptError(
                f"the reward gave components {sorted(result)} for "
                f"{sample_name(completions[n], examples[n])} but {sorted(names)} for "
                f"{sample_name(completions[rows[0][0]], examples[rows[0][0]])}: "
                "give every sample the same components"
            )
    parts = {name: np.zeros(len(results)) for name in names}
    for n, result in rows:
        for name in names:
            parts[name][n] = result[name]
    scored = np.array([not isinstance(result, Abstained) for result in results], bool)
    reasons = tuple(result.reason for result in results if isinstance(result, Abstained))
    return Scores(parts=parts, scored=scored, reasons=reasons)


def _fault(value: Any) -> str | None:
    """What is wrong with a number, in words; None when it is finite and real."""
    if value is None:
        return "None"
    if isinstance(value, str | bytes):
        return f"the string {_one_line(str(value)[:40])!r}"
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()  # a NumPy scalar, or an array of one number without axes
    if isinstance(value, numbers.Complex) and not isinstance(value, numbers.Real):
        return f"the complex number {value}"
    if not isinstance(value, numbers.Real):
        try:
            size = f" of length {len(value)}"
        except TypeError:
            size = ""
        return f"a {type(value).__name__}{size}"
    try:
        finite = math.isfinite(float(value))
    except OverflowError:
        finite = False
    return None if finite else f"{float(value) if isinstance(value, float) else 'a huge number'}"


def _one_line(text: str) -> str:
    return text.replace("\n", "\\n").replace("\r", "\\r")
