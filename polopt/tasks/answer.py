"""Where the answer is in a completion."""

from __future__ import annotations

from collections.abc import Callable

Extractor = Callable[[str], str | None]  # completion text -> answer, None when there is none

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


def whole_text(completion: str) -> str | None:
    """The completion itself, stripped: for tasks whose models write no tags."""
    return completion.strip()
