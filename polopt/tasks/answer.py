"""Where the answer is in a completion."""

from __future__ import annotations

from collections.abc import Callable

from polopt.tasks.task import Example

Extractor = Callable[[str], str | None]  # completion text -> answer, None when there is none

# What a model that follows instructions is told of the form that `tagged_answer` reads.
TAGGED = "Solve the problem. End with the result alone between <answer> and </answer>."

_OPEN, _CLOSE = "<answer>", "</answer>"


def tagged_answer(completion: str) -> str | None:
    """The text inside the last complete ``<answer>...</answer>`` block, stripped.

    Strict: without a complete block there is no answer, whatever else the text says.

    >>> tagged_answer("1 + 2 = 3<answer> 3 </answer>")
    '3'
    >>> tagged_answer("<answer>3") is None
    True
    """
    end = completion.rfind(_CLOSE)
    start = completion.rfind(_OPEN, 0, end) if end >= 0 else -1
    if start < 0:
        return None
    return completion[start + len(_OPEN) : end].strip()


def answered(example: Example) -> str:
    """The shortest completion in which `tagged_answer` finds the reference answer.

    >>> answered(Example(prompt="3 + 4 =", answer="7", index=0))
    '<answer>7</answer>'
    """
    return f"{_OPEN}{example.answer}{_CLOSE}"


def instruction(extract: Extractor) -> str:
    """What a model is told of the form that an extractor reads; nothing of one that is unknown."""
    return TAGGED if extract is tagged_answer else ""


def whole_text(completion: str) -> str | None:
    """The completion itself, stripped: for tasks whose models write no tags."""
    return completion.strip()
