"""Sums with a calculator: an episode of several turns, whose observations are computed.

The model writes a call, `15 - 43 =`, and the calculator continues the line with its result. The
embedded model has the habit of writing such lines, and of guessing the answer without them; which
of the two pays, and which call comes next, is for policy optimisation to find out.

A turn ends with a token that holds `=`. The model's own tokens may hold the sign of the result as
well (`= -` is one token): a right guess is completed, a wrong one is a misuse of the tool.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from polopt.tasks.answer import tagged_answer
from polopt.tasks.environment import Environment, Reply
from polopt.tasks.reasoning import reasoning_task
from polopt.tasks.score import SINGLE
from polopt.tasks.task import Example, Parts, Task

NAME = "calculator"
SIZE = {"min_terms": 2, "max_terms": 4, "min_digits": 1, "max_digits": 2}
TOOL = "tool"  # the component that a right step earns
INSTRUCTION = (
    "Add up two numbers at a time: write 15 - 43 = and the result is filled in. End with the final "
    "result alone between <answer> and </answer>."
)
CREDIT = 0.1  # of one episode, in equal shares of its steps: an outcome weighs ten times more
EXTRA_TURNS = 1  # calls that an episode may waste

_LONGEST = 9  # digits that the calculator takes
_CALL = re.compile(
    rf"[;\s]*(?P<a>-?\d{{1,{_LONGEST}}})\s*(?P<sign>[-+*])\s*(?P<b>-?\d{{1,{_LONGEST}}})"
    r"\s*=(?P<begun>.*)"
)


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a sum has been worked: `left` begins with the running total."""

    left: tuple[str, ...]  # "15", "- 43", "- 75": what is still to be added up
    steps: int  # that the whole sum takes
    shown: str = ""  # the last result that the calculator wrote


def calculator_task(
    settings: Mapping[str, Any] | None = None, *, seed: int = 0, held_out: int = 256
) -> Task:
    """Sums of the family chain_sum, worked with a calculator turn by turn.

    The outcome is the component "score", 1 for the right number in answer tags. A call that takes
    the next step of the sum, from left to right, earns its share of 0.1 as "tool".

    Args:
      settings: `min_terms`, `max_terms`, `min_digits`, `max_digits` (2 to 4 terms of 1 to 2 digits
        unless given), and whatever else chain_sum takes.
      seed: of the training stream.
      held_out: number of held-out problems.

    Raises:
      PoloptError: as `reasoning_task`.
    """
    chosen = {**SIZE, **(settings or {})}
    sums = reasoning_task("chain_sum", chosen, seed=seed, held_out=held_out)
    return dataclasses.replace(
        sums,
        name=NAME,
        reward=_outcome,
        instruction=INSTRUCTION,
        solutions={},  # half of one is written by the calculator
        environment=environment(int(chosen["max_terms"]), int(chosen["max_digits"])),
        settings={**sums.settings, "family": NAME},
    )


def environment(max_terms: int, max_digits: int) -> Environment:
    """The calculator, with room for sums of so many terms of so many digits.

    >>> desk = environment(3, 2)
    >>> problem = Example(prompt="", answer="-103", index=0,
    ...                   metadata={"expression": "15 - 43 - 75"})
    >>> reply = desk.step(desk.start(problem), "15 - 43 = -")
    >>> reply.text, reply.rewards, desk.label(reply.state)
    ('28', {'tool': 0.05}, '-28 - 75 | -28')
    >>> desk.step(reply.state, "3 + =").failed
    True
    """
    digits = max_digits + len(str(max_terms)) + 2  # of a result, its sign and one to spare
    return Environment(
        start=_start,
        step=_step,
        label=_label,
        stop=("=",),
        parts=(TOOL,),
        max_turns=max_terms + EXTRA_TURNS,
        turn_tokens=3 * (digits + 2),
        observation_tokens=digits,
    )


def evaluate(call: str) -> tuple[int, str] | None:
    """Work out `a + b =`, `a - b =` or `a * b =`: the result, and what is written after the `=`.

    A parser of its own, as a model's text is never given to Python. None if it is no such call.

    >>> evaluate("; -28 - 75 = -")
    (-103, '-')
    >>> evaluate("__import__('os') =") is None
    True
    """
    found = _CALL.fullmatch(call)
    if found is None:
        return None
    a, b = int(found["a"]), int(found["b"])
    result = {"+": a + b, "-": a - b, "*": a * b}[found["sign"]]
    return result, found["begun"].strip()


def _start(example: Example) -> Progress:
    first, *rest = example.metadata["expression"].split()
    terms = (f"{sign} {term}" for sign, term in zip(rest[::2], rest[1::2], strict=True))
    return Progress((first, *terms), steps=len(rest) // 2)


def _step(state: Progress, text: str) -> Reply:
    if "=" not in text:  # the model has closed its turn: it has said what it had to say
        return Reply(state=state, rewards={TOOL: 0.0}, done=True)
    worked = evaluate(text)
    if worked is None or not str(worked[0]).startswith(worked[1]):
        return Reply(state=state, rewards={TOOL: 0.0}, failed=True)
    result, begun = worked
    call = text.partition("=")[0].strip("; \t\n")
    right = call == " ".join(state.left[:2])
    left = (str(result), *state.left[2:]) if right else state.left
    return Reply(
        state=dataclasses.replace(state, left=left, shown=str(result)),
        text=str(result)[len(begun) :],
        rewards={TOOL: CREDIT / state.steps if right else 0.0},
    )


def _label(state: Progress) -> str:
    return f"{' '.join(state.left)} | {state.shown}"


def _outcome(completion: str, example: Example) -> Parts:
    return {SINGLE: float(tagged_answer(completion) == example.answer)}
