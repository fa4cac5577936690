"""Random batches that contain every awkward row at once. Host side, NumPy: nothing is compiled."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from polopt.build import earned_at, turns
from polopt.columns import name_of
from polopt.errors import PoloptError
from polopt.transform import Want
from polopt.types import PolicyOutputs, Stop, Trajectories, truncated

DEFAULT_COLUMNS = (
    "logp_old",
    "logp_ref",
    "logp_teacher",
    "value",
    "bootstrap_value",
    "greedy_return",
)
_SMALLEST = 9  # rows that hold every awkward case


def random_trajectories(
    seed: int, *, rows: int = 14, width: int = 10, columns: Iterable[str] = DEFAULT_COLUMNS
) -> Trajectories:
    """A ragged batch of NumPy arrays that contains every awkward row at once.

    One group of one; one group with equal rewards; one with an empty completion and an unscored
    row (whose recorded reward is a trap); the rest random, two of its rows from one episode;
    then one padding row; all shuffled. Rows have holes (observations), several turns and all ways
    to stop. What stands outside the action mask is finite garbage.

    Args:
      seed: of all that is drawn.
      rows, width: N >= 9 and T >= 5.
      columns: names of recorded columns; `logp_*` are log-probabilities near `logp_old`, names
        that are not known are standard normal `[N,T]`.

    Raises:
      PoloptError: too few rows or tokens.
    """
    if rows < _SMALLEST or width < 5:
        raise PoloptError(
            f"random_trajectories needs rows >= {_SMALLEST} and width >= 5; got {rows} and {width}"
        )
    rng = np.random.default_rng(seed)
    member = _groups(rng, rows)
    kind = np.array([_KINDS.get((g, i), "") for g, i in member])
    real = np.array([g >= 0 for g, _ in member])
    prompt_length = np.where(real, rng.integers(1, 3, rows), 0)
    length = np.where(real, rng.integers(prompt_length + 1, width + 1), 0)
    length = np.where(kind == "empty", prompt_length, length)
    mask = _action_mask(rng, prompt_length, length, width)
    labels = rng.permutation(rows)
    group = np.where(real, labels[[g for g, _ in member]], -1)
    episode = np.where(real, rng.permutation(rows), -1)
    last = [i for i, (g, _) in enumerate(member) if g == member[-2][0]]
    episode[last[1]] = episode[last[0]]
    scored = real & (kind != "unscored")
    made = Trajectories(
        tokens=rng.integers(0, 50, (rows, width)),
        length=length,
        prompt_length=prompt_length,
        action_mask=mask,
        turn=turns(mask),
        group=group,
        id=1000 + rng.permutation(rows),
        prompt=np.where(real, group, -1),
        episode=episode,
        reward_parts=_rewards(rng, mask, prompt_length, scored, kind == "equal", real),
        scored=scored,
        stop=np.where(real, rng.integers(1, len(Stop), rows), Stop.NONE),
        logp_sampler=_logp(rng, mask.shape),
        log_keep=-0.1 * rng.random(mask.shape),
        temperature=np.ones(rows),
        version=rng.integers(0, 3, mask.shape),
        columns={},
    )
    made = dataclasses.replace(made, columns=_columns(rng, made, columns))
    return take_rows(_narrow(made), rng.permutation(rows))


# What is awkward about the i-th row of group g; group -1 is padding.
_KINDS = {(1, 0): "equal", (1, 1): "equal", (2, 0): "empty", (2, 1): "unscored"}


def _groups(rng: np.random.Generator, rows: int) -> list[tuple[int, int]]:
    """Group and place in it of every row: sizes 1, 2, 3, then at least one of two or more."""
    sizes, left = [1, 2, 3], rows - 7
    while left > 3:
        sizes.append(int(rng.integers(2, 5 if left > 5 else left - 1)))
        left -= sizes[-1]
    sizes.append(left)
    return [(g, i) for g, size in enumerate(sizes) for i in range(size)] + [(-1, 0)]


def _action_mask(
    rng: np.random.Generator, start: np.ndarray, length: np.ndarray, width: int
) -> np.ndarray:
    """Actions with holes; the first token after the prompt is always one."""
    at = np.arange(width)[None]
    after = (at >= start[:, None]) & (at < length[:, None])
    return after & ((rng.random(after.shape) < 0.7) | (at == start[:, None]))


def _rewards(
    rng: np.random.Generator,
    mask: np.ndarray,
    prompt_length: np.ndarray,
    scored: np.ndarray,
    equal: np.ndarray,
    real: np.ndarray,
) -> dict[str, np.ndarray]:
    rows = np.arange(len(mask))
    outcome = np.where(equal, 0.7, rng.choice([0.0, 0.25, 1.0], len(mask)))
    where = earned_at(mask, prompt_length)
    final, process = np.zeros(mask.shape), np.zeros(mask.shape)
    final[rows, where] = np.where(real, np.where(scored, outcome, 5.0), 0)
    process[rows, mask.argmax(axis=1)] = np.where(mask.any(axis=1) & ~equal, 0.1, 0)
    return {"outcome": final, "process": process * rng.normal(size=(len(mask), 1))}


def _logp(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return -np.abs(rng.normal(1.2, 0.7, shape)) - 0.05


def _columns(
    rng: np.random.Generator, batch: Trajectories, names: Iterable[str]
) -> dict[str, np.ndarray]:
    shape, old = batch.action_mask.shape, batch.logp_sampler + batch.log_keep
    old = old + 0.1 * rng.normal(size=shape)
    cut = truncated(batch.stop)

    def column(name: str) -> np.ndarray:
        if name == "logp_old":
            return old
        if name.startswith("logp_"):
            return old + 0.3 * rng.normal(size=shape)
        if name == "bootstrap_value":
            return np.where(cut, rng.normal(size=shape[0]), 0)
        if name == "greedy_return":
            return rng.choice([0.0, 0.5, 1.0], shape[0])[batch.group]
        if name in _DRAWN:
            return _DRAWN[name](rng, batch)
        return rng.normal(size=shape)

    return {name: column(name) for name in names}


def _answers(rng: np.random.Generator, batch: Trajectories) -> np.ndarray:
    """A label per row, -1 where none was found."""
    return rng.integers(-1, 3, batch.length.shape)


def _anchors(rng: np.random.Generator, batch: Trajectories) -> np.ndarray:
    """A label per turn, so few that turns of a group meet, and of a row too."""
    labels = rng.integers(-1, 2, batch.turn.shape)
    return np.where(batch.turn < 0, -1, np.take_along_axis(labels, np.maximum(batch.turn, 0), 1))


def _nodes(rng: np.random.Generator, batch: Trajectories) -> np.ndarray:
    """Every turn is a node: the first is one of two in its group, each has at most two children."""
    choice = rng.integers(1, 3, batch.turn.shape)
    path = [choice[:, 0]]
    for k in range(1, batch.turn.shape[1]):
        path.append((2 * path[-1] + choice[:, k]) % 2**31)
    path = np.stack(path, axis=1)
    return np.where(batch.turn < 0, -1, np.take_along_axis(path, np.maximum(batch.turn, 0), 1))


def _spans(rng: np.random.Generator, batch: Trajectories) -> np.ndarray:
    """One or two tokens of a turn to a span."""
    return np.where(batch.action_mask, np.cumsum(rng.random(batch.turn.shape) < 0.7, axis=1), -1)


def _probabilities(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """[..., 3]: the largest of some probabilities, descending."""
    return -np.sort(-rng.dirichlet(np.ones(5), shape), axis=-1)[..., :3]


# What is not a number per token, or not any number.
_DRAWN: dict[str, Any] = {
    "sum_prob_sq": lambda rng, batch: rng.uniform(0.05, 1, batch.turn.shape),
    "optimal_value": lambda rng, batch: rng.random(len(batch.group))[batch.group],
    "drift": lambda rng, batch: 0.01 * rng.random(len(batch.group))[batch.group],
    "entropy": lambda rng, batch: rng.exponential(1.0, batch.turn.shape),
    "answer": _answers,
    "anchor": _anchors,
    "node": _nodes,
    "span": _spans,
    "teacher_sorted_prob": lambda rng, batch: _probabilities(rng, batch.turn.shape),
}


def random_outputs(
    seed: int, trajectories: Trajectories, wants: Iterable[Want] = (), *, scale: float = 0.3
) -> PolicyOutputs:
    """What a policy `scale` nats away from `logp_old` might say of the batch.

    Args:
      wants: further differentiable columns: `entropy` and divergences are positive, `sum_prob_sq`
        lies in (0, 1), `log_z` has one number per row, others are standard normal.
    """
    rng = np.random.default_rng(seed)
    shape = trajectories.action_mask.shape
    draws = {
        "entropy": lambda: rng.exponential(1.0, shape),
        "kl_teacher": lambda: rng.exponential(0.3, shape),
        "jsd_teacher": lambda: rng.exponential(0.1, shape),
        "sum_prob_sq": lambda: rng.uniform(0.05, 1, shape),
        "sorted_prob": lambda: _probabilities(rng, shape),
        "log_z": lambda: rng.normal(size=shape[0]),
        "logp_prm": lambda: _logp(rng, shape),
    }
    names = [name_of(want) for want in wants]
    columns = {name: draws.get(name, lambda: rng.normal(size=shape))() for name in names}
    logp = trajectories.columns["logp_old"] + scale * rng.normal(size=shape)
    return _narrow(PolicyOutputs(logp=logp, columns=columns))


def take_rows(tree: Any, index: np.ndarray) -> Any:
    """The rows `index` of every leaf of a batch, in that order."""
    return jax.tree.map(lambda leaf: leaf[index], tree)


def pad_trajectories(batch: Trajectories, *, rows: int, width: int) -> Trajectories:
    """The same batch with `rows` more padding rows and `width` more positions.

    Floats that are added are NaN, so that nothing may read them.
    """
    n = len(batch.length)
    made = _pad(batch, rows, width)
    ids = np.concatenate([batch.id, batch.id.max() + 1 + np.arange(rows, dtype=batch.id.dtype)])
    ints = {"length": 0, "prompt_length": 0, "group": -1, "episode": -1, "prompt": -1, "stop": 0}
    filled = {
        name: np.concatenate([getattr(made, name)[:n], np.full(rows, fill)]).astype(np.int32)
        for name, fill in ints.items()
    }
    turn = np.where(made.action_mask, made.turn, -1)
    return dataclasses.replace(made, id=ids, turn=turn, **filled)


def pad_outputs(outputs: PolicyOutputs, *, rows: int, width: int) -> PolicyOutputs:
    """Outputs for a padded batch, NaN where there is nothing."""
    return _pad(outputs, rows, width)


def _pad(tree: Any, rows: int, width: int) -> Any:
    def pad(x: np.ndarray) -> np.ndarray:
        x = np.asarray(x)
        fill = np.nan if np.issubdtype(x.dtype, np.floating) else 0
        sizes = [(0, rows), (0, width)][: x.ndim] + [(0, 0)] * (x.ndim - 2)
        return np.pad(x, sizes, constant_values=fill)

    return jax.tree.map(pad, tree)


def _narrow(tree: Any) -> Any:
    """float32 and int32, as a rollout writes them."""
    kinds = {"f": np.float32, "i": np.int32, "b": np.bool_}
    return jax.tree.map(lambda x: np.asarray(x, kinds[np.asarray(x).dtype.kind]), tree)
