"""Invariances of single pieces, tested as their cards declare them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from polopt.algorithm import Algorithm
from polopt.errors import PoloptError
from polopt.testing.verdict import agree
from polopt.transform import Transform
from polopt.types import Credit, Trajectories

_TOLERANCE = 2e-5  # a scale's epsilon is 1e-6 of the spread
_SHIFT, _SCALE = 3.0, 8.0
_ROUNDED = 0.8132702  # its float32 mean over 3, 6, 7 or 8 rows is another number


def piece_invariances(
    alg: Algorithm, path: str, transform: Transform, batch: Trajectories, seed: int
) -> None:
    """Check what a reward piece declares on a random credit of the kind that it reads.

    "shift": a constant added to every row's number changes nothing, and equal numbers have credit
    exactly zero. "scale": a positive factor changes nothing. "permutation": numbers exchanged
    inside a group are exchanged in the credit.

    Raises:
      LawBroken: the declaration is wrong.
      PoloptError: it declares something that cannot be tested.
    """
    rng = np.random.default_rng(seed)
    batch = dataclasses.replace(
        batch, episode=np.where(batch.group < 0, -1, np.arange(len(batch.group), dtype=np.int32))
    )
    numbers = rng.normal(size=len(batch.length)).astype(np.float32)
    apply = _applied(transform, batch)
    counted = np.asarray(batch.scored & (batch.length > 0))
    order = _within_groups(rng, np.where(counted, batch.group, -1))
    expected = apply(numbers)
    moved = {
        "shift": lambda: (expected, apply(numbers + np.float32(_SHIFT))),
        "scale": lambda: (expected, apply(np.float32(_SCALE) * numbers)),
        "permutation": lambda: (expected[order], apply(numbers[order])),
    }
    several = counted & (np.bincount(batch.group[counted], minlength=len(counted))[batch.group] > 1)
    for name in transform.card.invariant:
        if name not in moved:
            raise PoloptError(
                f"{transform.name} declares the invariance {name!r}; known are {', '.join(moved)}"
            )
        left, right = moved[name]()
        rows = several if name == "scale" else counted  # a group of one has no scale of its own
        what = f"{path} declares {name!r}, but its credit"
        agree("invariances", alg, what, left[rows], right[rows], _TOLERANCE)
    if "shift" in transform.card.invariant:
        equal = apply(np.full_like(numbers, _ROUNDED))
        agree(
            "invariances",
            alg,
            f"{path} declares 'shift', but the credit of equal numbers",
            np.zeros_like(equal[counted]),
            equal[counted],
            0.0,
        )


def _applied(transform: Transform, batch: Trajectories) -> Callable[[np.ndarray], np.ndarray]:
    """From one number per row to the piece's credit: `[N]`, or `[N,T]` inside the mask."""

    def apply(numbers: np.ndarray) -> np.ndarray:
        mask = np.asarray(batch.action_mask)
        last = mask & (np.cumsum(mask[:, ::-1], axis=1)[:, ::-1] == 1)
        start = Credit(reward=numbers[:, None] * last, keep=mask, sequence=numbers)
        out = transform.fn(start, batch, **transform.arguments())
        if out.value is None and transform.card.reads != ("reward",):
            return np.asarray(out.sequence)
        return np.where(mask, np.asarray(out.per_token()), 0)

    return apply


def _within_groups(rng: np.random.Generator, group: np.ndarray) -> np.ndarray:
    """A random order that only exchanges rows of one group; rows of group -1 stay."""
    order = np.arange(len(group))
    for g in set(group[group >= 0].tolist()):
        rows = np.flatnonzero(group == g)
        order[rows] = rng.permutation(rows)
    return order
