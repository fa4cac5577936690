"""Environments: what answers a model between its turns.

An environment is data and pure functions: a state goes in, a state comes out, and nothing is kept
between calls. That lets a rollout fork an episode, play it again, or play hundreds side by side.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polopt.tasks.task import Example

State = Any  # the environment's own; never changed in place


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reply:
    """What an environment makes of one turn. Rewards come on top of the task's outcome."""

    state: State
    text: str = ""  # the observation that follows the turn; may be empty
    rewards: Mapping[str, float] = dataclasses.field(default_factory=dict)  # earned by the turn
    done: bool = False  # the episode ends here, and the model does not see the text any more
    failed: bool = False  # it ends, because a tool could not do what the turn asked for


@dataclasses.dataclass(frozen=True, kw_only=True)
class Environment:
    """How episodes of a task go: turns of the model, and an observation after each.

    >>> clock = Environment(  # tells the time to whoever asks for it
    ...     start=lambda example: 12,
    ...     step=lambda hour, text: Reply(state=hour + 1, text=f" {hour}:00", done="?" not in text),
    ...     label=str,
    ...     stop=("?",),
    ... )
    >>> reply = clock.step(clock.start(None), "What time is it?")
    >>> reply.text, clock.label(reply.state), reply.done
    (' 12:00', '13', False)

    A turn ends with the model's end of sequence, with a token whose text holds one of `stop`, or
    after `turn_tokens` tokens; in the last case the episode ends, for such a turn may be half a
    call. The token that ended a turn is the model's own: it is trained on and seen by `step`.

    Attributes:
      start: the state in which an example begins.
      step: `step(state, text of the turn) -> Reply`.
      label: what distinguishes a state from others of the same example. Turns that begin in states
        of equal label can be compared: they are the column `anchor`.
      stop: texts that end a turn; each must be spelled by at least one token.
      parts: the names that `Reply.rewards` may use.
      max_turns: an episode that needs more is cut with `Stop.TURN_LIMIT`.
      turn_tokens: most tokens of one turn.
      observation_tokens: room for one observation; a row that is full ends with `Stop.LENGTH`.
    """

    start: Callable[[Example], State]
    step: Callable[[State, str], Reply]
    label: Callable[[State], str]
    stop: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    max_turns: int = 4
    turn_tokens: int = 32
    observation_tokens: int = 16
