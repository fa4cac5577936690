"""Trajectories from ragged lists, and the checks at the door. Host side, NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from polopt.errors import PoloptError
from polopt.types import Stop, Trajectories

Ids = Sequence[int]
Rewards = Sequence[Any]  # per row: a number, None (abstained), or one number per completion token


def build(
    prompts: Sequence[Ids],
    completions: Sequence[Ids],
    rewards: Rewards | dict[str, Rewards],
    *,
    group: int | Sequence[int],
    logp_sampler: Sequence[Sequence[float]] | None = None,
    action_mask: Sequence[Sequence[bool]] | None = None,
    stop: Sequence[int] | None = None,
    temperature: float = 1.0,
    columns: dict[str, Any] | None = None,
    width: int | None = None,
) -> Trajectories:
    """Make `Trajectories` from ragged lists, for people with their own sampler.

    Args:
      prompts, completions: token ids of each of the N rows.
      rewards: one number per row, or a list with one per completion token, or None where the
        reward abstained; or `{component: such a list}`.
      group: the size of groups of neighbouring rows, or each row's group id in `[0, N)`.
      logp_sampler: log-probabilities of the completion tokens as the sampler reports them.
      action_mask: which completion tokens the policy wrote; all if not given. Observations of
        tools are False. A turn is a run of True.
      stop: why each row ended (`polopt.Stop`).
      temperature: at which the rows were sampled.
      columns: further columns, `[N]` or `[N,T]` arrays.
      width: T; the longest row if not given.

    Raises:
      PoloptError: lengths that do not agree, a group with two prompts, a reward that is not finite.
    """
    n = len(prompts)
    groups = _groups(group, n)
    parts = rewards if isinstance(rewards, dict) else {"reward": rewards}
    lists = {
        "completions": completions,
        "stop": stop,
        "logp_sampler": logp_sampler,
        "action_mask": action_mask,
        **{f"rewards[{k!r}]": v for k, v in parts.items()},
    }
    for name, rows in lists.items():
        if rows is not None and len(rows) != n:
            raise PoloptError(f"{name} has {len(rows)} rows but there are {n} prompts")
    _check_groups(prompts, groups)
    start = np.array([len(p) for p in prompts], np.int32)
    length = start + np.array([len(c) for c in completions], np.int32)
    T = int(length.max(initial=1)) if width is None else width
    if n and length.max() > T:
        raise PoloptError(f"row {int(length.argmax())} has {length.max()} tokens; width is {T}")
    tokens = np.zeros((n, T), np.int32)
    for i, (p, c) in enumerate(zip(prompts, completions, strict=True)):
        tokens[i, : length[i]] = [*p, *c]
    mask = _scatter(
        action_mask or [[True] * len(c) for c in completions],
        start,
        length,
        np.zeros((n, T), bool),
        "action_mask",
    )
    scored = np.array([all(v[i] is not None for v in parts.values()) for i in range(n)], bool)
    return Trajectories(
        tokens=tokens,
        length=length,
        prompt_length=start,
        action_mask=mask,
        turn=turns(mask),
        group=groups,
        id=np.arange(n, dtype=np.int32),
        prompt=groups.copy(),
        episode=np.arange(n, dtype=np.int32),
        reward_parts={k: _rewards(k, v, mask, start, length) for k, v in parts.items()},
        scored=scored,
        stop=np.full(n, Stop.NONE, np.int32) if stop is None else np.array(stop, np.int32),
        logp_sampler=_scatter(
            logp_sampler or [[0.0] * len(c) for c in completions],
            start,
            length,
            np.zeros((n, T), np.float32),
            "logp_sampler",
        ),
        log_keep=np.zeros((n, T), np.float32),
        temperature=np.full(n, temperature, np.float32),
        version=np.zeros((n, T), np.int32),
        columns=dict(columns or {}),
    )


def turns(mask: np.ndarray) -> np.ndarray:
    """i32[N,T]: the number of the run of True that a token belongs to, -1 outside."""
    before = np.pad(mask[:, :-1], ((0, 0), (1, 0)))
    return np.where(mask, np.cumsum(mask & ~before, axis=1) - 1, -1).astype(np.int32)


def earned_at(mask: np.ndarray, prompt_length: np.ndarray) -> np.ndarray:
    """i32[N]: where an outcome stands: the last action token, else the last prompt token."""
    last = mask.shape[1] - 1 - mask[:, ::-1].argmax(axis=1)
    return np.where(mask.any(axis=1), last, np.maximum(prompt_length - 1, 0)).astype(np.int32)


def _groups(group: int | Sequence[int], n: int) -> np.ndarray:
    if isinstance(group, int | np.integer):
        if group < 1 or n % group:
            raise PoloptError(f"group={group} does not divide the {n} rows")
        return (np.arange(n) // group).astype(np.int32)
    ids = np.asarray(group, np.int32)
    if ids.shape != (n,):
        raise PoloptError(f"group has {ids.size} ids but there are {n} rows")
    if n and (ids.min() < 0 or ids.max() >= n):
        raise PoloptError(f"group ids must lie in [0, {n}); got {ids.min()}..{ids.max()}")
    return ids


def _check_groups(prompts: Sequence[Ids], groups: np.ndarray) -> None:
    first: dict[int, int] = {}
    for i, g in enumerate(groups.tolist()):
        j = first.setdefault(g, i)
        if list(prompts[j]) != list(prompts[i]):
            raise PoloptError(f"rows {j} and {i} are in group {g} but have different prompts")


def _scatter(
    rows: Sequence[Sequence[Any]], start: np.ndarray, length: np.ndarray, out: np.ndarray, name: str
) -> np.ndarray:
    for i, row in enumerate(rows):
        if len(row) != length[i] - start[i]:
            raise PoloptError(
                f"{name}[{i}] has {len(row)} entries but its completion has "
                f"{length[i] - start[i]} tokens"
            )
        out[i, start[i] : length[i]] = row
    return out


def _rewards(
    name: str, rows: Rewards, mask: np.ndarray, start: np.ndarray, length: np.ndarray
) -> np.ndarray:
    out = np.zeros(mask.shape, np.float32)
    where = earned_at(mask, start)
    for i, row in enumerate(rows):
        if row is None:
            continue
        if np.ndim(row) == 0:
            out[i, where[i]] = row
        elif len(row) == length[i] - start[i]:
            out[i, start[i] : length[i]] = row
        else:
            raise PoloptError(
                f"rewards[{name!r}][{i}] has {len(row)} entries but its completion "
                f"has {length[i] - start[i]} tokens"
            )
        if not np.isfinite(out[i]).all():
            raise PoloptError(
                f"rewards[{name!r}][{i}] is not finite; None says that the reward abstains"
            )
    return out
