"""Episodes: turns of the model and observations in between, token for token. Host side.

In every turn the contexts of all rows are read anew (a prefill), in batches of one static shape:
rows that have ended are padding. A draw is addressed by its row and by its place in the row, so a
turn goes on counting where the last one stopped.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from polopt.errors import PoloptError
from polopt.rollout.lanes import Generated
from polopt.rollout.rows import Row, Sampler, Segment, resume
from polopt.rollout.shares import UNSHARED, Shares
from polopt.tasks.environment import Environment, Reply, State
from polopt.tasks.score import sample_name
from polopt.types import Stop


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
    """What bounds an episode."""

    environment: Environment
    tokenizer: Any
    task: str  # its name, for errors
    max_new_tokens: int  # that the model may write, in all turns together
    room: int  # tokens after the prompt, observations included
    widest: int  # context that still leaves a turn its tokens
    shares: Shares = UNSHARED


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Episode:
    """A row, and the state of its environment before turn number `turn`.

    The state is in one process only, if several draw together: the one that plays the episode.
    """

    row: Row
    state: State
    turn: int = 0

    @property
    def live(self) -> bool:
        """Whether another turn follows."""
        return self.row.stop == Stop.NONE


def room_of(environment: Environment, max_new_tokens: int) -> int:
    """Tokens that may follow a prompt: the model's, and an observation between two turns."""
    return max_new_tokens + (environment.max_turns - 1) * environment.observation_tokens


def stop_ids(environment: Environment, tokenizer: Any) -> tuple[int, ...]:
    """Every token whose text holds one of the environment's stops.

    Raises:
      PoloptError: a stop that no token spells.
    """
    texts = {i: tokenizer.decode([i]) for i in range(tokenizer.vocab_size)}
    for stop in environment.stop:
        if not any(stop in text for text in texts.values()):
            raise PoloptError(
                f"no token of the tokenizer spells the stop {stop!r}: an environment's stops lie "
                "within one token"
            )
    held = (i for i, text in texts.items() if any(stop in text for stop in environment.stop))
    return tuple(held)


def play(
    sample: Sampler, rows: Sequence[Row], shared: tuple[np.ndarray, np.ndarray], rules: Rules
) -> list[Row]:
    """Episodes from beginning to end.

    Args:
      sample: one call is one turn.
      rows: N of them, as `begin` makes them: P prompts, G neighbours each.
      shared: the prompts i32[P,S] and their lengths i32[P], read once in the first turn.
      rules: of the environment.
    """
    size = len(rows) // len(shared[0])
    episodes = open_episodes(rows, rules, size)
    generated = first_turn(sample, rows, shared)
    while True:
        asked = [e if e.live else None for e in episodes]
        taken = take_turns(asked, generated, rules, size)
        episodes = [new or old for new, old in zip(taken, episodes, strict=True)]
        if not any(e.live for e in episodes):
            return [e.row for e in episodes]
        generated = resume(sample, [e.row if e.live else None for e in episodes], rules.widest)


def first_turn(
    sample: Sampler, rows: Sequence[Row], shared: tuple[np.ndarray, np.ndarray]
) -> Generated:
    """The first tokens of N rows, whose P prompts are read once each."""
    ids = np.array([row.id for row in rows], np.int32).reshape(len(shared[0]), -1)
    return jax.device_get(sample(*shared, ids))


def open_episodes(rows: Sequence[Row], rules: Rules, size: int) -> list[Episode]:
    """Rows before their first turn, of groups of that size."""

    def opened(n: int) -> Episode:
        row = rows[n]
        return Episode(row=row, state=_asked(rules.environment.start, row, 0, rules, row.example))

    return rules.shares.each(len(rows), size, opened, _stateless)


def take_turns(
    asked: Sequence[Episode | None], generated: Generated, rules: Rules, size: int
) -> list[Episode | None]:
    """Episodes after the rows of a call have become their next turns, and been answered."""

    def taken(n: int) -> Episode | None:
        episode = asked[n]
        return episode and _take_turn(episode, generated, n, rules)

    return rules.shares.each(len(asked), size, taken, lambda e: e and _stateless(e))


def _stateless(episode: Episode) -> Episode:
    return dataclasses.replace(episode, state=None)


def _take_turn(episode: Episode, generated: Generated, n: int, rules: Rules) -> Episode:
    """The episode after row n of a call has become its next turn, and been answered."""
    row, number, environment = episode.row, episode.turn, rules.environment
    label = _asked(environment.label, row, number, rules, episode.state)
    most = rules.max_new_tokens - row.actions
    turn = Segment.sampled(generated, n, most, number, anchor=stable_hash(label))
    if generated.stop[n] == Stop.LENGTH or generated.length[n] > most:
        return dataclasses.replace(episode, row=row.add(turn, Stop.LENGTH))
    text = rules.tokenizer.decode(turn.tokens.tolist())
    reply = _asked(environment.step, row, number, rules, episode.state, text)
    reply = _checked(reply, row, number, rules)
    row = row.add(dataclasses.replace(turn, rewards=reply.rewards))
    shown = rules.tokenizer.encode(reply.text)
    if reply.failed:
        stop = Stop.TOOL_ERROR
    elif reply.done:
        stop = Stop(int(generated.stop[n]))
    elif number + 1 == environment.max_turns:
        stop = Stop.TURN_LIMIT
    elif row.actions == rules.max_new_tokens or row.extent + len(shown) >= rules.room:
        stop = Stop.LENGTH
    else:
        row = row.add(Segment.observed(shown))
        return Episode(row=row, state=reply.state, turn=number + 1)
    return Episode(row=dataclasses.replace(row, stop=stop), state=reply.state, turn=number + 1)


def stable_hash(label: str) -> int:
    """31 bits that are the same in every process.

    >>> stable_hash("15 - 43 | ")
    179982908
    """
    return int.from_bytes(hashlib.sha256(label.encode()).digest()[:4], "big") >> 1


def _asked(function: Callable[..., Any], row: Row, turn: int, rules: Rules, *arguments: Any) -> Any:
    """What the environment says; what it raises becomes one line."""
    try:
        return function(*arguments)
    except Exception as error:
        words = " ".join(str(error).split())
        raise PoloptError(
            f"the environment of {rules.task} raised {type(error).__name__} in turn {turn} of "
            f"{_name(row, rules)}: {words}"
        ) from error


def _checked(reply: Any, row: Row, turn: int, rules: Rules) -> Reply:
    where = f"the environment of {rules.task}, turn {turn} of {_name(row, rules)}:"
    if not isinstance(reply, Reply):
        raise PoloptError(f"{where} step gave a {type(reply).__name__}, not a Reply")
    for part, value in reply.rewards.items():
        if part not in rules.environment.parts:
            known = ", ".join(rules.environment.parts) or "none"
            raise PoloptError(f"{where} a reward {part!r} that is not among its parts ({known})")
        if not math.isfinite(value):
            raise PoloptError(f"{where} the reward {part!r} is {value}: give a finite number")
    return reply


def _name(row: Row, rules: Rules) -> str:
    return sample_name(rules.tokenizer.decode(row.after.tolist()), row.example)
