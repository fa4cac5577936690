"""An algorithm: its two sides as data, what they need, and the memory of their pieces."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from polopt import aggregate as aggregation
from polopt.columns import name_of
from polopt.errors import PoloptError, did_you_mean
from polopt.trajectory.sampling import Sampling, Update
from polopt.transform import (
    COUPLINGS,
    Chain,
    Link,
    Transform,
    Want,
    chain,
    check_order,
    replace_link,
    walk,
)
from polopt.types import Info

State = dict[str, dict[str, Any]]  # {clock: {piece path: memory}}
CLOCKS = ("rollout", "update")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Algorithm:
    """A method: a reward side, a trajectory side, token weights, and how it samples and updates.

    Equal algorithms are equal by value and share compiled code; numbers are pytree leaves.

    Raises:
      PoloptError: a piece stands on the wrong side or in a wrong order.
    """

    reward: Chain
    trajectory: Chain
    aggregate: Transform = dataclasses.field(default_factory=aggregation.token_mean)
    sampling: Sampling = dataclasses.field(default=Sampling(), metadata={"static": True})
    update: Update = dataclasses.field(default=Update(), metadata={"static": True})
    name: str = dataclasses.field(default="", metadata={"static": True})

    def __post_init__(self) -> None:
        if not isinstance(self.reward, Chain):  # an internal node of jax.tree.map, or a mistake
            if isinstance(self.reward, Link):
                object.__setattr__(self, "reward", chain(self.reward))
            else:
                return
        if not isinstance(self.trajectory, Chain) and isinstance(self.trajectory, Link):
            object.__setattr__(self, "trajectory", chain(self.trajectory))
        if check_order(self.reward, "reward", "reward") == "reward":
            raise PoloptError(
                "the reward side ends without a return: add outcome_return() or gae()"
            )
        check_order(self.trajectory, "trajectory", "logp")
        if not terms(self):
            raise PoloptError(
                "the trajectory side has no objective: add clip() or policy_gradient()"
            )

    def replace(self, **changes: Any) -> Algorithm:
        """A copy with fields or links replaced: `grpo().replace(clip=clip(0.2, 0.28))`.

        Raises:
          PoloptError: no field and no link has that name.
        """
        fields = {f.name for f in dataclasses.fields(self)}
        new = {name: value for name, value in changes.items() if name in fields}
        reward, trajectory = self.reward, self.trajectory
        for name in changes.keys() - fields:
            reward, on_reward = replace_link(reward, name, changes[name])
            trajectory, on_trajectory = replace_link(trajectory, name, changes[name])
            if on_reward + on_trajectory == 0:
                known = sorted(fields | {p.split("/")[-1] for p, _ in pieces(self)})
                raise PoloptError(
                    f"{self.name or 'the algorithm'} has no part {name!r}"
                    f"{did_you_mean(name, known)} (it has {', '.join(known)})"
                )
        return dataclasses.replace(self, **{"reward": reward, "trajectory": trajectory, **new})


# ---------------------------------------------------------------- what an algorithm is made of


def pieces(alg: Algorithm) -> list[tuple[str, Transform]]:
    """Every transform with its path, reward side first."""
    return [*walk(alg.reward, "reward"), *walk(alg.trajectory, "trajectory")]


def terms(alg: Algorithm) -> dict[str, list[Transform]]:
    """{term: the transforms that write it}, in order."""
    out: dict[str, list[Transform]] = {}
    for _, transform in walk(alg.trajectory):
        if transform.card.term:
            out.setdefault(transform.card.term, []).append(transform)
    return out


def needs(alg: Algorithm, side: str | None = None) -> tuple[str, ...]:
    """Recorded columns that the pieces (of one side) read."""
    chosen = [t for _, t in pieces(alg) if side in (None, t.card.side)]
    return tuple(sorted({name for t in chosen for name in t.needs}))


def wants(alg: Algorithm) -> tuple[Want, ...]:
    """Differentiable columns of the current models that the loss reads, `logp` aside."""
    found = {name_of(want): want for _, t in pieces(alg) for want in t.wants}
    return tuple(found[name] for name in sorted(found))


def coupling(alg: Algorithm) -> str:
    """The widest scope in which rows depend on each other inside the loss: see `COUPLINGS`."""
    return max((t.card.couples for _, t in pieces(alg)), key=COUPLINGS.index)


def single_step(alg: Algorithm) -> bool:
    """Whether a rollout batch is one optimiser step, so that every ratio starts and stays at 1."""
    return alg.update.epochs * alg.update.minibatches == 1


# ---------------------------------------------------------------- memory


def init(alg: Algorithm, *, prompts: int = 0) -> State:
    """The memory of an algorithm's pieces, empty for most.

    Args:
      prompts: how many prompts the data set has, for pieces that keep one number per prompt.
    """
    state: State = {clock: {} for clock in CLOCKS}
    for path, transform in pieces(alg):
        if transform.card.clock and transform.hooks.init:
            made = transform.hooks.init(prompts, **transform.arguments())
            state[transform.card.clock][path] = made
    return state


def advance(alg: Algorithm, state: State, info: Info) -> State:
    """Memory after one optimiser step, from the step's merged info."""
    update = dict(state["update"])
    for path, transform in pieces(alg):
        if path in update and transform.hooks.advance:
            update[path] = transform.hooks.advance(update[path], info, **transform.arguments())
    return {**state, "update": update}
