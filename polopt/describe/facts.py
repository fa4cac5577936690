"""What a method is, read from its composition: nothing here knows a method's name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from polopt import algorithms
from polopt.algorithm import Algorithm, coupling, needs, pieces, wants
from polopt.catalogue import EVIDENCE, METHODS, Method
from polopt.columns import name_of
from polopt.describe.recorded import COLUMNS, MODELS
from polopt.describe.words import arguments, call, shown
from polopt.errors import PoloptError
from polopt.failures import FAILURES
from polopt.trajectory.sampling import Sampling, Update
from polopt.transform import Link, Transform, walk


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """One method on the map.

    Attributes:
      sides: which sides it changes of plain REINFORCE: "reward", "trajectory".
      reward, trajectory: its pieces in order.
      changed: per side, the pieces that REINFORCE does not have.
      sampling, update: what is not as in `Sampling()` and `Update()`.
      needs, wants: recorded columns, and differentiable columns of the current models.
      models: what it takes besides the policy, of `polopt.describe.recorded.MODELS`.
      repairs: failures that its pieces repair, in the order of `polopt.failures`.
    """

    key: str
    method: Method | None
    sides: tuple[str, ...]
    reward: tuple[Transform, ...]
    trajectory: tuple[Transform, ...]
    changed: dict[str, tuple[Transform, ...]]
    aggregate: Transform
    sampling: dict[str, Any]
    update: dict[str, Any]
    needs: tuple[str, ...]
    wants: tuple[str, ...]
    models: tuple[str, ...]
    couples: str
    repairs: tuple[str, ...]
    verified_against: tuple[str, ...]


def built(method: Algorithm | Callable[[], Algorithm]) -> Algorithm:
    """The algorithm itself, or what its factory makes with its defaults."""
    made = method if isinstance(method, Algorithm) else method()
    if not isinstance(made, Algorithm):
        raise PoloptError(f"expected a polopt.Algorithm or what makes one, not {made!r}")
    return made


def shipped(key: str) -> Algorithm | None:
    """The method of that key as it ships, if there is one."""
    return getattr(algorithms, key)() if key in algorithms.__all__ else None


def facts(alg: Algorithm) -> Facts:
    """Read a method."""
    plain = algorithms.reinforce()
    changed = {
        "reward": _beyond(alg.reward, plain.reward),
        "trajectory": _beyond(alg.trajectory, plain.trajectory),
    }
    sampling = not_default(alg.sampling, Sampling())
    # A companion is scored for the reward side; how many are drawn changes no probability.
    drawn = sampling.keys() - {"group_size", "companion"}
    sides = [side for side, new in changed.items() if new or (side == "trajectory" and drawn)]
    repaired = {key for piece in every_piece(alg) for key in piece.card.repairs}
    return Facts(
        key=alg.name,
        method=METHODS.get(alg.name),
        sides=tuple(sides),
        reward=tuple(piece for _, piece in walk(alg.reward)),
        trajectory=tuple(piece for _, piece in walk(alg.trajectory)),
        changed=changed,
        aggregate=alg.aggregate,
        sampling=sampling,
        update=not_default(alg.update, Update()),
        needs=needs(alg),
        wants=tuple(name_of(want) for want in wants(alg)),
        models=models(alg),
        couples=coupling(alg),
        repairs=tuple(key for key in FAILURES if key in repaired),
        verified_against=EVIDENCE.get(alg.name, ()),
    )


def method_map() -> dict[str, Facts]:
    """Every method that ships, read from its composition, in the order of the catalogue."""
    return {key: facts(getattr(algorithms, key)()) for key in METHODS if key in algorithms.__all__}


def every_piece(alg: Algorithm) -> list[Transform]:
    """All pieces of a method, its aggregation last."""
    return [*(piece for _, piece in pieces(alg)), alg.aggregate]


def models(alg: Algorithm) -> tuple[str, ...]:
    """The models besides the policy that a method takes."""
    names = [*needs(alg), *(name_of(want) for want in wants(alg))]
    found = {COLUMNS[name].model for name in names if name in COLUMNS}
    found |= {model for want in wants(alg) for model in getattr(want, "models", ())}
    if alg.update.teacher is not None:  # the policy itself, in hindsight
        found -= {"teacher"}
    for helper in (alg.sampling.companion, alg.sampling.mixture, alg.update.teacher):
        found |= {helper.policy} if helper else set()
    return tuple(name for name in MODELS if name in found)


def not_default(value: Any, default: Any) -> dict[str, Any]:
    """The fields of a dataclass that differ from `default`, by name."""
    pairs = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
    return {name: x for name, x in pairs if x != getattr(default, name)}


def as_json(entry: Facts) -> dict[str, Any]:
    """A method as plain data, for programs."""
    known = entry.method._asdict() if entry.method else {}
    return {
        "key": entry.key,
        "title": known.get("title", entry.key),
        "family": known.get("family"),
        "paper": known.get("paper"),
        "year": entry.method.year if entry.method else None,
        "parent": known.get("parent"),
        "purpose": known.get("purpose"),
        "sides": list(entry.sides),
        "pieces": {
            "reward": [_piece_json(piece) for piece in entry.reward],
            "trajectory": [_piece_json(piece) for piece in entry.trajectory],
            "aggregate": _piece_json(entry.aggregate),
        },
        "sampling": {name: _plain(x) for name, x in entry.sampling.items()},
        "update": {name: _plain(x) for name, x in entry.update.items()},
        "needs": list(entry.needs),
        "wants": list(entry.wants),
        "models": list(entry.models),
        "couples": entry.couples,
        "repairs": list(entry.repairs),
        "verified_against": list(entry.verified_against),
    }


def _beyond(link: Link, plain: Link) -> tuple[Transform, ...]:
    known = {piece.name for _, piece in walk(plain)}
    return tuple(piece for _, piece in walk(link) if piece.name not in known)


def _piece_json(piece: Transform) -> dict[str, Any]:
    given = {name: _plain(x) for name, x in arguments(piece).items()}
    return {"name": piece.name, "arguments": given}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Transform):
        return call(value)
    if dataclasses.is_dataclass(value) and not callable(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return shown(value)
