"""The default task: sums and differences of two or three small numbers, and how to work them.

A base model needs both habits from the start: worked steps, which are nearly always right, and
direct answers, which are careless. Which of them pays is for policy optimisation to find out.
"""

from __future__ import annotations

from polopt.tasks.task import Example

FAMILY = "chain_sum"
SIZE = {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 2}


def worked(example: Example) -> str:
    """The completion that works from left to right and then answers.

    >>> problem = Example(prompt="", answer="-103", index=0,
    ...                   metadata={"expression": "15 - 43 - 75"})
    >>> worked(problem)
    '15 - 43 = -28; -28 - 75 = -103<answer>-103</answer>'
    """
    total, *rest = example.metadata["expression"].split()
    steps = []
    for sign, term in zip(rest[::2], rest[1::2], strict=True):
        result = str(int(total) + int(term) if sign == "+" else int(total) - int(term))
        steps.append(f"{total} {sign} {term} = {result}")
        total = result
    return "; ".join(steps) + f"<answer>{total}</answer>"


def direct(example: Example, error: int = 0) -> str:
    """The completion that answers at once, `error` away from the truth.

    >>> direct(Example(prompt="", answer="7", index=0), error=-2)
    '<answer>5</answer>'
    """
    return f"<answer>{int(example.answer) + error}</answer>"
