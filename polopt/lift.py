"""Small pieces from plain functions, for methods in a user's own file.

    @reward_piece
    def rank(sequence, group): ...            # [N], [N] -> [N]

    @trajectory_piece
    def squared(ratio, credit): ...           # elementwise, the objective to maximise

Both are then factories: `rank()`, `squared()`. Keyword-only parameters annotated `float` are
hyper-parameters, as everywhere.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

from polopt.transform import Transform, piece
from polopt.types import Context, Credit, Surrogate, Term, Trajectories


def reward_piece(fn: Callable) -> Callable[..., Transform]:
    """Lift `f(sequence f32[N], group i32[N], *, ...) -> f32[N]` to a reward-side piece.

    `group` is -1 on padding rows; segment operations of jax drop them.
    """

    def lifted(credit: Credit, trajectories: Trajectories, **hyper: Any) -> Credit:
        return dataclasses.replace(
            credit, sequence=fn(credit.sequence, trajectories.group, **hyper)
        )

    return piece("reward", reads="sequence", couples="none")(_named(lifted, fn))


def trajectory_piece(fn: Callable) -> Callable[..., Transform]:
    """Lift an elementwise `f(ratio, credit, *, ...) -> objective` to a policy surrogate."""

    def lifted(surrogate: Surrogate, context: Context, **hyper: Any) -> Surrogate:
        objective = fn(surrogate.ratio, context.credit, **hyper)
        term = Term(objective=objective, mask=context.mask)
        return dataclasses.replace(surrogate, terms={**surrogate.terms, "policy": term})

    return piece("trajectory", reads="ratio", writes="policy", term="policy")(_named(lifted, fn))


def _named(lifted: Callable, fn: Callable) -> Callable:
    """Give the lifted function the name, docstring and keyword parameters of the plain one."""
    functools.update_wrapper(lifted, fn)
    lifted.__signature__ = inspect.signature(fn)  # type: ignore[attr-defined]
    return lifted
