"""Which models a method reads, when, and whose parameters move. Derived from its pieces.

`logp` and whatever else a loss differentiates is read in every optimiser step; recorded columns
are scored once, at the start of a batch's update; a sampling spec may let other models write.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from polopt.algorithm import Algorithm, needs, pieces, single_step, wants
from polopt.columns import kl_full, models_of
from polopt.compose import RECORDED
from polopt.errors import PoloptError
from polopt.models import LanguageModel, PartitionModel, ValueModel
from polopt.models.lora import LoraModel, join, split
from polopt.rollout.rows import ANSWER, LABELS
from polopt.trajectory.sampling import Hindsight
from polopt.transform import Want

SCORED: Mapping[str, Want] = {
    **{n: n for n in ("logp_ref", "logp_teacher", "logp_prm", "value", "entropy", "sum_prob_sq")},
    "logp_old": "logp",
    "kl_teacher": kl_full("teacher"),
}
"""Recorded columns that the loop scores, and what each is of the models at that moment."""

DRIFT = "drift"
"""A column of its own: how far the policy has moved since each prompt's last response."""

TRAINED = ("policy", "critic", "prm", "partition")
"""Models whose parameters an optimiser step moves, as far as a method reads them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Roles:
    """Who does what in a run; modules are static handles."""

    modules: dict[str, Any]  # every model that is read, by name
    update: tuple[str, ...]  # of those, the ones that an optimiser step reads
    columns: dict[str, Want]  # what is scored at the start of a batch's update
    drift: bool  # whether the last response to every prompt is scored again
    hindsight: Hindsight | None  # who says `logp_teacher`, if not a model of its own

    @property
    def trained(self) -> tuple[str, ...]:
        """Models with parameters in the train state."""
        return tuple(name for name in TRAINED if name in self.modules)

    @property
    def given(self) -> tuple[str, ...]:
        """Models that no optimiser step moves: "reference" and "teacher"."""
        return tuple(name for name in self.modules if name not in TRAINED)

    def chosen(self, names: tuple[str, ...]) -> dict[str, Any]:
        """Some of the modules."""
        return {name: self.modules[name] for name in names}

    def scoring(self) -> tuple[str, ...]:
        """The models that the recorded columns read."""
        read = (model for want in self.columns.values() for model in models_of(want))
        return tuple(dict.fromkeys(read))


def roles(alg: Algorithm, policy: LanguageModel, teacher: LanguageModel | None) -> Roles:
    """The models of a run.

    Raises:
      PoloptError: a needed column that nobody makes, or a column that reads an unknown model.
    """
    columns, update = scored(alg), in_update(alg)
    critic = ValueModel(policy.config, policy.compute_dtype, policy.attention)
    partition = PartitionModel(policy.config)
    able = {"policy": policy, "reference": policy, "prm": policy}
    able |= {"critic": critic, "partition": partition, "teacher": teacher}
    names = models_read(alg)
    for name in names:
        if name not in able:
            raise PoloptError(
                f"{alg.name or 'the algorithm'} reads a model {name!r}; there are {', '.join(able)}"
            )
    modules = {name: able[name] for name in names}
    needed = needs(alg)
    return Roles(
        modules=modules,
        update=update,
        columns=columns,
        drift=DRIFT in needed,
        hindsight=alg.update.teacher if "logp_teacher" in needed else None,
    )


def models_read(alg: Algorithm) -> tuple[str, ...]:
    """Every model that a method reads, "policy" first."""
    recorded = [model for want in scored(alg).values() for model in models_of(want)]
    specs = alg.sampling.mixture, alg.sampling.companion, alg.update.teacher
    named = [spec.policy for spec in specs if spec is not None]
    return tuple(dict.fromkeys([*in_update(alg), *recorded, *named]))


def in_update(alg: Algorithm) -> tuple[str, ...]:
    """The models that every optimiser step reads, "policy" first."""
    return tuple(dict.fromkeys(["policy", *(m for want in wants(alg) for m in models_of(want))]))


def scored(alg: Algorithm) -> dict[str, Want]:
    """Recorded columns that must be scored once per rollout, and what each is of the models.

    Raises:
      PoloptError: a needed column that nobody makes.
    """
    needed = dict.fromkeys(needs(alg))
    companion = alg.sampling.companion
    there = {*RECORDED, *LABELS, ANSWER, DRIFT} | ({companion.column} if companion else set())
    there -= {"node"} if alg.sampling.branch is None else set()
    there |= {"logp_teacher"} if alg.update.teacher else set()
    if single_step(alg) and "logp_old" not in _early(alg):
        there |= {"logp_old"}  # inside the loss it is the current log-probability
    unknown = [name for name in needed if name not in there and name not in SCORED]
    if unknown:
        raise PoloptError(
            f"{alg.name or 'the algorithm'} needs the column {unknown[0]!r}, which "
            "this loop cannot make: score it yourself and call polopt.prepare"
        )
    return {name: SCORED[name] for name in needed if name not in there}


def _early(alg: Algorithm) -> set[str]:
    """Columns that are read before the loss is."""
    early = [piece for _, piece in pieces(alg) if piece.card.side == "reward" or piece.hooks.before]
    return {name for piece in early for name in piece.needs}


def first_params(made: Roles, policy_params: Any, seed: int) -> dict[str, Any]:
    """What moves of the trained models, before the first step.

    The process reward model starts as the policy; a critic's decoder does, too, and is trained
    whole even where the policy has adapters.
    """
    key, policy = jax.random.key(seed), made.modules["policy"]
    start, base = parts(policy, policy_params)

    def critic() -> Any:
        whole = policy_params if base is None else policy.merge(policy_params)[1]
        return made.modules["critic"].init(jax.random.fold_in(key, 3), whole)

    starts = {
        "policy": lambda: start,
        "prm": lambda: start,
        "critic": critic,
        "partition": lambda: made.modules["partition"].init(jax.random.fold_in(key, 4)),
    }
    return {name: starts[name]() for name in made.trained}


def parts(module: Any, params: Any) -> tuple[Any, Any]:
    """(what is trained, what stays) of a model's parameters; None stays of one without adapters."""
    return split(params) if isinstance(module, LoraModel) else (params, None)


def together(given: Mapping[str, Any], moving: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of all models: adapters are `moving` over a base that is `given` by their name."""
    over = {name: join(part, given[name]) for name, part in moving.items() if name in given}
    return {**given, **moving, **over}


def blend(share: float, average: Any, policy: Any) -> Any:
    """A moving average of parameters, after a share of the policy's has come in."""
    return jax.tree.map(lambda a, b: a + share * (b - a), average, policy)
