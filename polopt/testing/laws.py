"""The laws, one function each. A broken one raises `LawBroken` with its evidence."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from polopt.algorithm import Algorithm, coupling, needs, pieces, wants
from polopt.compose import RECORDED
from polopt.errors import PoloptError, did_you_mean
from polopt.testing.draw import (
    pad_outputs,
    pad_trajectories,
    random_outputs,
    random_trajectories,
    take_rows,
)
from polopt.testing.pieces import piece_invariances
from polopt.testing.plant import ALONE, DEGENERATE, bfloat16, plant
from polopt.testing.probe import (
    TRACES,
    Case,
    Outcome,
    measure,
    measure_lanes,
    measure_split,
)
from polopt.testing.verdict import LawBroken, agree, require
from polopt.transform import Chain, Transform, chain
from polopt.types import PolicyOutputs, Trajectories

__all__ = ["LAWS", "LawBroken", "check_laws"]

Make = Algorithm | Callable[[], Algorithm]
_TOLERANCE = 1e-6  # relative, float32
_EXTRA = (2, 3)  # padding rows and positions that the split form adds
_SLICES = 4


def check_laws(
    method: Make,
    *,
    laws: Iterable[str] | None = None,
    seed: int = 0,
    factor: float | None = 1.0,
    trajectories: Trajectories | None = None,
) -> tuple[str, ...]:
    """Check the laws of any algorithm, also of one made of a user's own pieces.

    Args:
      method: an algorithm, or a function without required arguments that makes one; a function is
        called again where the law speaks of an equal algorithm built anew.
      laws: names out of `LAWS`; all if not given.
      seed: of the random batches.
      factor: what multiplies `-weight * credit` in the on-policy gradient, or None for a method
        whose on-policy gradient is by design of another form.
      trajectories: a batch with the columns that the method needs and `logp_old`, for columns that
        `random_trajectories` cannot guess; it should hold padding rows and rows without a score.

    Returns:
      The names of the laws that were checked.

    Raises:
      LawBroken: with the law, the method and the evidence.
      PoloptError: no law of that name.

    >>> from polopt.algorithms import rloo
    >>> check_laws(rloo, laws=["masks"])
    ('masks',)
    """
    chosen = tuple(LAWS) if laws is None else tuple(laws)
    for law in chosen:
        if law not in LAWS:
            raise PoloptError(
                f"no law {law!r}{did_you_mean(law, LAWS)} (there are {', '.join(LAWS)})"
            )
        if law == "on_policy":
            on_policy(method, seed=seed, trajectories=trajectories, factor=factor)
        else:
            LAWS[law](method, seed=seed, trajectories=trajectories)
    return chosen


# ---------------------------------------------------------------- law 1


def partition(method: Make, *, seed: int = 0, trajectories: Trajectories | None = None) -> None:
    """Law 1: slices, row order, names of groups and padding change neither loss nor gradient.

    The merged info is the same too. A method that couples the batch stays in one slice; one that
    couples groups is cut between groups.
    """
    whole = _case(method, seed, trajectories)
    _compare("partition", whole.alg, measure_lanes([whole])[0], *_in_pieces(whole, seed))


def _in_pieces(case: Case, seed: int) -> tuple[Outcome, np.ndarray]:
    """The outcome from slices of the padded, shuffled, relabelled batch, and the way back."""
    rng = np.random.default_rng(seed)
    n, (rows, width) = len(case.trajectories.length), _EXTRA
    order = rng.permutation(n + rows)
    labels = rng.permutation(n + rows).astype(np.int32)
    padded = take_rows(pad_trajectories(case.trajectories, rows=rows, width=width), order)
    padded = dataclasses.replace(
        padded, group=_relabel(padded.group, labels), episode=_relabel(padded.episode, labels)
    )
    outputs = take_rows(pad_outputs(case.outputs, rows=rows, width=width), order)
    moved = dataclasses.replace(case, trajectories=padded, outputs=outputs)
    split = measure_split(moved, _slices(coupling(case.alg), padded, rng))
    return split, np.argsort(order)[:n]


def _relabel(ids: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.where(ids < 0, -1, labels[ids])


def _slices(scope: str, batch: Trajectories, rng: np.random.Generator) -> np.ndarray:
    """i32[S,M]: a ragged assignment of the real rows to slices, filled up with a padding row."""
    filler = int(np.flatnonzero(batch.length == 0)[0])
    real = np.flatnonzero(batch.length > 0)
    if scope == "batch":
        owner = np.zeros(len(real), int)
    elif scope == "group":
        owner = rng.integers(0, _SLICES, len(batch.length))[batch.group[real]]
    else:  # sizes 1, 2 and what is left, in two
        owner = np.repeat(range(_SLICES), [1, 2, *_halves(max(len(real) - 3, 0))])[: len(real)]
    parts = [real[owner == s] for s in range(1 if scope == "batch" else _SLICES)]
    width = len(batch.length) if scope in ("group", "batch") else len(batch.length) // 2
    return np.stack(
        [np.pad(part, (0, width - len(part)), constant_values=filler) for part in parts]
    ).astype(np.int32)


def _halves(n: int) -> tuple[int, int]:
    return n // 2, n - n // 2


def _compare(law: str, alg: Algorithm, a: Outcome, b: Outcome, back: np.ndarray) -> None:
    """`b` has rows in another order, and more of them; `b[back]` are those of `a`."""
    width = a.credit.shape[1]
    mass = float(np.abs(a.weight * a.credit).sum()) + abs(float(a.loss))
    agree(law, alg, "the loss", a.loss, b.loss, _TOLERANCE, scale=mass)
    agree(law, alg, "the credit", a.credit, b.credit[back, :width], _TOLERANCE)
    for name, left, right in _columns(a.gradient, b.gradient):
        own = (back, slice(width))[: min(right.ndim, 2)]
        agree(law, alg, f"the gradient of {name}", left, right[own], _TOLERANCE)
        inside = np.zeros(right.shape, bool)
        inside[own] = True
        require(law, alg, not right[~inside].any(), f"padding has a gradient of {name}")
    for name, entry in a.info.items():
        kinds = {leaf.dtype.kind for leaf in jax.tree.leaves(entry)}
        require(law, alg, kinds <= {"f", "i", "u"}, f"the info {name!r} does not add: bool")
        for left, right in zip(jax.tree.leaves(entry), jax.tree.leaves(b.info[name]), strict=True):
            # Cancelling sums: what matters is the error against the mass that was summed.
            scale = max(mass, float(np.abs(left)), 1.0)
            agree(law, alg, f"the merged info {name!r}", left, right, _TOLERANCE, scale=scale)


# ---------------------------------------------------------------- law 2


def on_policy(
    method: Make,
    *,
    seed: int = 0,
    trajectories: Trajectories | None = None,
    factor: float | None = 1.0,
) -> None:
    """Law 2: where the policy has not moved, the gradient is `-factor * weight * credit`.

    Penalties are switched off and the sampler agrees with the trainer. Nothing is checked for a
    factor of None, or for a method without a term "policy".
    """
    case = _case(method, seed, trajectories)
    if factor is None or not any(t.card.term == "policy" for _, t in pieces(case.alg)):
        return
    old = case.trajectories.columns["logp_old"]
    batch = dataclasses.replace(case.trajectories, logp_sampler=old, log_keep=0 * old)
    outputs = dataclasses.replace(case.outputs, logp=old)
    case = dataclasses.replace(case, trajectories=batch, outputs=outputs, others=0.0)
    out = measure_lanes([case])[0]
    agree(
        "on_policy",
        case.alg,
        "the gradient of logp, against -weight * credit,",
        -factor * out.weight * out.credit,
        out.gradient.logp,
        _TOLERANCE,
    )


# ---------------------------------------------------------------- law 3


def masks(method: Make, *, seed: int = 0, trajectories: Trajectories | None = None) -> None:
    """Law 3: outside the action mask the gradient is exactly zero, and a NaN changes nothing."""
    case = _case(method, seed, trajectories)
    planted = [plant(case, value) for value in (np.nan, np.inf, -np.inf, 1e30)]
    clean, *dirty = measure_lanes([case, *planted])
    outside = ~np.asarray(case.trajectories.action_mask)
    for name, gradient, _ in _columns(clean.gradient, clean.gradient):
        require(
            "masks",
            case.alg,
            gradient.ndim < 2 or not gradient[outside].any(),
            f"the gradient of {name} is not zero outside the action mask",
        )
    require(
        "masks",
        case.alg,
        not clean.credit[outside].any(),
        "the credit is not zero outside the action mask",
    )
    for value, out in zip((np.nan, np.inf, -np.inf, 1e30), dirty, strict=True):
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(clean), jax.tree.leaves(out), strict=True
        ):
            what = f"{value} planted outside the action mask changes {_spell(path)}: it"
            agree("masks", case.alg, what, a, b, 1e-7)


# ---------------------------------------------------------------- law 4


def invariances(method: Make, *, seed: int = 0, trajectories: Trajectories | None = None) -> None:
    """Law 4: every piece of the reward side has the invariances that its card declares."""
    case = _case(method, seed, trajectories)
    for path, transform in pieces(case.alg):
        if transform.card.invariant:
            piece_invariances(case.alg, path, transform, case.trajectories, seed)


# ---------------------------------------------------------------- law 5


def degenerate(method: Make, *, seed: int = 0, trajectories: Trajectories | None = None) -> None:
    """Law 5: a batch without information is finite, and zero where there is nothing to learn."""
    case = _case(method, seed, trajectories)
    cases = {
        name: dataclasses.replace(case, trajectories=change(case.trajectories))
        for name, change in DEGENERATE.items()
    }
    for name, out in zip(cases, measure_lanes(list(cases.values())), strict=True):
        batch = cases[name].trajectories
        _finite("degenerate", case.alg, name, out)
        dead = ~np.asarray(batch.scored)[:, None] | ~np.asarray(batch.action_mask)
        require(
            "degenerate",
            case.alg,
            not out.credit[dead].any(),
            f"{name}: a row without a score, or a token outside the mask, has credit",
        )
        if not np.any(batch.action_mask):
            zero = not any(np.any(x) for x in (out.loss, *jax.tree.leaves(out.gradient)))
            require("degenerate", case.alg, zero, f"{name}: loss or gradient is not zero")
        if name == ALONE and _needs_company(case.alg):
            require("degenerate", case.alg, not out.credit.any(), f"{name}: they have credit")


def _needs_company(alg: Algorithm) -> bool:
    """Whether a piece says that it gives no credit to a group of one, and none after it does."""
    company = False
    for link in alg.reward.links:
        if not isinstance(link, Transform):
            return False
        company = (company or link.card.min_group > 1) and not link.card.from_nothing
    return company


# ---------------------------------------------------------------- law 6


def extremes(method: Make, *, seed: int = 0, trajectories: Trajectories | None = None) -> None:
    """Law 6: log-ratios of ±80 and more, and bfloat16 inputs, leave loss and gradient finite."""
    case = _case(method, seed, trajectories)
    old = case.trajectories.columns["logp_old"]
    sign = np.where(np.arange(old.size).reshape(old.shape) % 2, 1, -1)
    # exp(80) is still a float32; at 1000 no exponential of a log-ratio may stand unbounded.
    shifts = {
        "+80": 80 + 0 * old,
        "-80": -80 + 0 * old,
        "±80": np.float32(80) * sign,
        "±1000": np.float32(1000) * sign,
    }
    cases = [
        dataclasses.replace(case, outputs=dataclasses.replace(case.outputs, logp=old + s))
        for s in shifts.values()
    ]
    for name, out in zip(shifts, measure_lanes(cases), strict=True):
        _finite("extremes", case.alg, f"log-ratios of {name}", out)
    half = bfloat16(cases[2])
    before = jax.tree.map(np.array, half)
    _finite("extremes", case.alg, "bfloat16 inputs", jax.tree.map(np.asarray, measure(half)))
    changed = [
        _spell(path)
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(half), strict=True
        )
        if not np.array_equal(a, b)
    ]
    require("extremes", case.alg, not changed, f"inputs were changed in place: {changed}")


def _finite(law: str, alg: Algorithm, name: str, out: Outcome) -> None:
    bad = [
        _spell(path)
        for path, x in jax.tree_util.tree_leaves_with_path(out)
        if not np.isfinite(np.asarray(x, np.float32)).all()
    ]
    require(law, alg, not bad, f"{name}: not finite: {', '.join(bad)}")


# ---------------------------------------------------------------- law 7


def composition(method: Make, *, seed: int = 0, trajectories: Trajectories | None = None) -> None:
    """Law 7: chains associate; vmap over the method's numbers is jit of each; nothing retraces.

    The numbers are its own, and all of them times 1.1.
    """
    case = _case(method, seed, trajectories)
    alg = case.alg
    for side in (alg.reward, alg.trajectory):
        _associative(alg, side)
    again = dataclasses.replace(case, alg=_anew(method))
    require(
        "composition",
        alg,
        _hash(again.alg) == _hash(alg) and again.alg == alg,
        "the same algorithm built anew is not equal",
    )
    moved = dataclasses.replace(case, alg=jax.tree.map(lambda x: 1.1 * x, alg))
    cases = [case, moved]
    for lane, one in zip(measure_lanes(cases), cases, strict=True):
        _compare("composition", alg, lane, *_in_pieces(one, seed))
    traced = dict(TRACES)
    measure_lanes([again, moved])
    _in_pieces(again, seed)
    require(
        "composition",
        alg,
        traced == dict(TRACES),
        f"an equal algorithm is traced again: {traced} became {dict(TRACES)}",
    )


def _associative(alg: Algorithm, side: Chain) -> None:
    whole = chain(side)
    require(
        "composition",
        alg,
        chain(chain(), side) == whole == chain(side, chain()),
        "chain() is not an identity",
    )
    for cut in range(1, len(side.links)):
        first = Chain(side.names[:cut], side.links[:cut])
        second = Chain(side.names[cut:], side.links[cut:])
        require(
            "composition",
            alg,
            chain(first, second) == whole,
            f"the chain cut at {side.names[cut]!r} does not join again",
        )


def _anew(method: Make) -> Algorithm:
    return copy.deepcopy(method) if isinstance(method, Algorithm) else method()


def _hash(alg: Algorithm) -> int:
    return hash(jax.tree.structure(alg))


# ---------------------------------------------------------------- shared


def _case(method: Make, seed: int, trajectories: Trajectories | None) -> Case:
    alg = method if isinstance(method, Algorithm) else method()
    columns = sorted({"logp_old", *needs(alg)} - {*RECORDED, "returns"})
    batch = trajectories or random_trajectories(seed, columns=columns)
    return Case(alg=alg, trajectories=batch, outputs=random_outputs(seed, batch, wants(alg)))


def _columns(a: PolicyOutputs, b: PolicyOutputs) -> list[tuple[str, np.ndarray, np.ndarray]]:
    return [("logp", a.logp, b.logp), *((k, a.columns[k], b.columns[k]) for k in a.columns)]


def _spell(path: Any) -> str:
    return jax.tree_util.keystr(path).lstrip(".")


LAWS: dict[str, Callable[..., None]] = {
    law.__name__: law
    for law in (partition, on_policy, masks, invariances, degenerate, extremes, composition)
}
