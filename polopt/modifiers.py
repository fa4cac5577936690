"""Modifiers: what can be done to any method, as functions from algorithm to algorithm.

tis = with_truncated_is(grpo())
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from polopt.algorithm import Algorithm
from polopt.divergence import k3
from polopt.trajectory import (
    kl_penalty,
    masked_is,
    offpolicy_sequence_mask,
    per_token,
    truncated_is,
)
from polopt.transform import Transform, chain


def _with(alg: Algorithm, link: Transform, name: str) -> Algorithm:
    """The method with one more link at the end of its trajectory side."""
    return alg.replace(trajectory=chain(alg.trajectory, link), name=name or alg.name)


def with_truncated_is(
    alg: Algorithm, high: float = 2.0, *, level: Callable = per_token, name: str = "", **more: Any
) -> Algorithm:
    """Weigh the policy's term by min(π_old/μ, high): see `truncated_is`."""
    return _with(alg, truncated_is(high=high, level=level, **more), name)


def with_masked_is(
    alg: Algorithm,
    low: float | None = 0.5,
    high: float = 5.0,
    *,
    level: Callable = per_token,
    name: str = "",
) -> Algorithm:
    """Weigh the policy's term by π_old/μ inside the bounds and by 0 outside: see `masked_is`."""
    return _with(alg, masked_is(low, high, level), name)


def with_offpolicy_mask(alg: Algorithm, threshold: float = 0.5, *, name: str = "") -> Algorithm:
    """Leave out rows of negative credit that the policy left: see `offpolicy_sequence_mask`."""
    return _with(alg, offpolicy_sequence_mask(threshold), name)


def with_unbiased_kl(alg: Algorithm, coefficient: float = 0.04, *, name: str = "") -> Algorithm:
    """The KL penalty weighed by the ratio: unbiased in value and gradient, also off-policy.

    Raises:
      PoloptError: the method has no KL penalty to replace.
    """
    made = alg.replace(kl_penalty=kl_penalty(k3, coefficient, weighted=True))
    return made.replace(name=name or alg.name)
