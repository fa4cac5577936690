"""What flows through polopt: trajectories in, credit and surrogate in between, prepared rows out.

Dimension letters: `P` prompts, `G` samples per prompt, `N` rows (trajectories), `T` token
positions, `V` vocabulary. Every `[N,T]` array is aligned with `tokens`: entry `[n,t]` speaks of
`tokens[n,t]` given all tokens before it; there are no shifted copies.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np

from polopt.errors import PoloptError

if TYPE_CHECKING:
    # Host code holds NumPy arrays and compiled code jax arrays, in the same records: a checker
    # that told them apart would ask for a cast at every border.
    Array: TypeAlias = Any
else:
    Array = jax.Array | np.ndarray
_T = TypeVar("_T")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def record(cls: type[_T]) -> type[_T]:
    """Make `cls` a frozen, keyword-only dataclass that is a pytree of all its fields."""
    cls = dataclasses.dataclass(frozen=True, kw_only=True, eq=False)(cls)
    return jax.tree_util.register_dataclass(cls)


class Stop(enum.IntEnum):
    """Why a trajectory ended. *Terminated* and *truncated* are different things."""

    NONE = 0  # padding row, or not known
    EOS = 1  # the model closed its turn
    STOP_TOKEN = 2  # a stop token other than the end of sequence
    LENGTH = 3  # cut by the token limit
    TURN_LIMIT = 4  # cut by the limit of turns
    TOOL_ERROR = 5  # a tool ended the episode


def truncated(stop: Array) -> Array:
    """bool[N]: the row was cut by a limit before the policy ended it (`stop i32[N]`)."""
    return (stop == Stop.LENGTH) | (stop == Stop.TURN_LIMIT)


@record
class Trajectories:
    """The record of what happened: written by the rollout, nothing inferred later.

    Rows are left-aligned and padded on the right; a row with `length == 0` is padding and counts
    nowhere. `columns` holds what scoring or tasks add because a piece needs it (`logp_old`,
    `logp_ref`, `logp_teacher`, `value`, `bootstrap_value`, `greedy_return`, ...).
    """

    tokens: Array  # i32[N,T] prompt, actions and observations exactly as sampled
    length: Array  # i32[N] real tokens are [0, length)
    prompt_length: Array  # i32[N]
    action_mask: Array  # bool[N,T] tokens that are trained on
    turn: Array  # i32[N,T] k on tokens of the model's k-th turn, -1 elsewhere
    group: Array  # i32[N] rows that share a baseline, in [0, N); -1 on padding rows
    id: Array  # i32[N] unique in the run
    prompt: Array  # i32[N] index of the prompt in its data set, -1 when endless
    episode: Array  # i32[N] rows of one episode share it; in [0, N), -1 on padding rows
    reward_parts: dict[str, Array]  # f32[N,T] each component at the token that earned it
    scored: Array  # bool[N] False where the reward abstained or failed
    stop: Array  # i32[N] a Stop
    logp_sampler: Array  # f32[N,T] under the distribution that was really sampled
    log_keep: Array  # f32[N,T] log of the mass that top-p/top-k/min-p kept
    temperature: Array  # f32[N] scoring divides logits by it
    version: Array  # i32[N,T] policy version that produced the token
    columns: dict[str, Array]

    @staticmethod
    def build(prompts: Any, completions: Any, rewards: Any, **options: Any) -> Trajectories:
        """Make trajectories from ragged lists: see `polopt.build.build`."""
        from polopt.build import build

        return build(prompts, completions, rewards, **options)


@record
class Credit:
    """The reward side in flight: pieces edit `reward`, a return makes `sequence` or `value`."""

    reward: Array  # f32[N,T]
    keep: Array  # bool[N,T] False removes a token from numerator and denominator
    sequence: Array = None  # f32[N] one number per row, where the credit is still that, else None
    value: Array = None  # f32[N,T] credit per token, once there is one, else None
    targets: dict[str, Array] = dataclasses.field(default_factory=dict)  # f32[N,T]
    share: Array = None  # f32[N,T] how much a token counts where it stands in several rows, or None

    def per_token(self) -> Array:
        """f32[N,T]: the credit of every token, a sequence credit broadcast along its row."""
        if self.value is not None:
            return self.value
        assert self.sequence is not None
        return jnp.broadcast_to(self.sequence[:, None], self.reward.shape)


@record
class Term:
    """One summand of the objective; its weights come from the term's aggregation."""

    objective: Array  # f32[N,T], maximised
    mask: Array  # bool[N,T] False removes a token from the numerator only


@record
class Surrogate:
    """The trajectory side in flight: a ratio, then the terms of the objective."""

    logp: Array  # f32[N,T] log-probability under the current policy, zero outside the mask
    log_ratio: Array  # f32[N,T] zero until a ratio piece has run
    ratio: Array  # f32[N,T] one until a ratio piece has run
    terms: dict[str, Term] = dataclasses.field(default_factory=dict)
    info: dict[str, Any] = dataclasses.field(default_factory=dict)

    def with_term(self, name: str, objective: Array, mask: Array, **info: Any) -> Surrogate:
        """The surrogate with one term written, and measurements `{group__name: entry}` added.

        An objective `[N,1]`, one number per row, is written on each of the row's tokens.
        """
        measured = {key.replace("__", "/"): entry for key, entry in info.items()}
        objective = jnp.broadcast_to(objective, mask.shape)
        return dataclasses.replace(
            self,
            terms={**self.terms, name: Term(objective=objective, mask=mask)},
            info={**self.info, **measured},
        )


@record
class Rows:
    """What the loss reads of each row: leaves of shape `[N, ...]`, free to be sliced or permuted.

    `columns` holds the recorded columns that the trajectory side needs, zero outside the mask.
    """

    credit: Array  # f32[N,T] constant in the loss
    mask: Array  # bool[N,T] action tokens that the reward side kept
    scored: Array  # bool[N] the reward was known
    members: dict[str, Array]  # {term: bool or f32[N,T]} what a token counts in the denominator
    weights: dict[str, Array]  # {term: f32[N,T]} summed, never averaged
    columns: dict[str, Array]
    before: dict[str, dict[str, Array]]  # {piece path: what its recorded half computed}
    group: Array
    turn: Array
    id: Array
    step: Array  # i32[N] the optimiser step that the row belongs to


@record
class Prepared:
    """A batch ready for the loss: per-row leaves, and scalars shared by all rows."""

    rows: Rows
    shared: dict[str, Any]

    @property
    def credit(self) -> Array:
        """f32[N,T]: what the reward side makes of every token."""
        return self.rows.credit


@record
class PolicyOutputs:
    """What models say of trajectories: `logp f32[N,T]` and differentiable columns.

    `logp` is None only where it was not asked for, so that a zero never passes for it.
    """

    logp: Array = None
    columns: dict[str, Array] = dataclasses.field(default_factory=dict)


@record
class Context:
    """What a trajectory piece may read besides the surrogate."""

    credit: Array  # f32[N,T] constant
    mask: Array  # bool[N,T]
    rows: Rows
    outputs: dict[str, Array]  # differentiable columns of the current models
    before: dict[str, Array]  # what this piece's recorded half computed
    shared: dict[str, Any]

    def known(self) -> Array:
        """bool[N,T]: tokens of rows whose reward is known."""
        return self.mask & self.rows.scored[:, None]

    def column(self, name: str) -> Array:
        """A recorded column, `f32[N,T]` or `f32[N]`.

        Raises:
          PoloptError: the piece has not declared that it needs the column.
        """
        if name not in self.rows.columns:
            raise PoloptError(
                f"a piece reads the column {name!r} without needs=({name!r},) in its "
                f"@piece (declared: {', '.join(self.rows.columns) or 'none'})"
            )
        return self.rows.columns[name]


@record
class Mean:
    """A mean kept as a pair, so that any split of a batch merges exactly."""

    sum: Array
    weight: Array

    def value(self) -> Array:
        """The mean; zero where nothing was counted."""
        return self.sum / jnp.where(self.weight == 0, 1, self.weight)


@record
class Max:
    """A maximum over the batch."""

    max: Array

    def value(self) -> Array:
        """The maximum."""
        return self.max


@record
class Count:
    """A number of things, summed over the batch."""

    count: Array

    def value(self) -> Array:
        """The count."""
        return self.count


Info = dict[str, Mean | Max | Count]


def merge_info(a: Info, b: Info) -> Info:
    """Merge the infos of two disjoint parts of a batch; keys must agree."""
    return jax.tree.map(_merge, a, b, is_leaf=lambda x: isinstance(x, Mean | Max | Count))


def _merge(a: Mean | Max | Count, b: Mean | Max | Count) -> Mean | Max | Count:
    if isinstance(a, Max):
        return Max(max=jnp.maximum(a.max, b.max))  # type: ignore[union-attr]
    return jax.tree.map(jnp.add, a, b)


def info_values(info: Info) -> dict[str, Array]:
    """{name: scalar} of a merged info."""
    return {name: entry.value() for name, entry in info.items()}
