"""Rows while they are drawn, host side: a prompt, and what follows it piece by piece.

Tokens are kept as they were sampled or, for observations, tokenised once; nothing is ever turned
into text and back. Rows are immutable, so that two of them can share what they have in common.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

import jax
import numpy as np

from polopt.rollout.lanes import Generated
from polopt.tasks.task import Example
from polopt.types import Stop, Trajectories

BUCKET = 16  # prompts are padded to a multiple, so that few shapes are ever compiled
NO_LABEL = -1
AT_PROMPT = 0  # label of the one state that a row without an environment acts in
LABELS = ("anchor", "node")  # columns that a segment may bring
ANSWER = "answer"  # a column of labels of rows


class Sampler(Protocol):
    """Prompts `i32[P,S]`, lengths `i32[P]`, ids `i32[P,G]` in; `Generated` of N = P*G rows out.

    `offset i32[P,G]` is the place of the next token in its row, counted from the end of the prompt
    that the row began with: 0 unless given.
    """

    def __call__(
        self,
        prompts: np.ndarray,
        lengths: np.ndarray,
        ids: np.ndarray,
        offset: np.ndarray | None = None,
        /,
    ) -> Generated:
        """The next tokens of every row."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Segment:
    """Consecutive tokens of one origin: a turn, a part of one, or an observation (turn -1)."""

    tokens: np.ndarray  # i32[k]
    logp_sampler: np.ndarray  # f32[k]
    log_keep: np.ndarray  # f32[k]
    turn: int = -1
    labels: Mapping[str, int] = dataclasses.field(default_factory=dict)
    rewards: Mapping[str, float] = dataclasses.field(default_factory=dict)  # at its last token

    @staticmethod
    def observed(tokens: Sequence[int]) -> Segment:
        """What the model is shown; it did not write it."""
        nothing = np.zeros(len(tokens), np.float32)
        return Segment(
            tokens=np.array(tokens, np.int32), logp_sampler=nothing, log_keep=nothing, turn=-1
        )

    @staticmethod
    def sampled(generated: Generated, n: int, most: int, turn: int, **labels: int) -> Segment:
        """What row n of a call wrote, cut to `most` tokens."""
        part = slice(0, min(int(generated.length[n]), most))
        return Segment(
            tokens=np.asarray(generated.tokens[n, part]),
            logp_sampler=np.asarray(generated.logp_sampler[n, part]),
            log_keep=np.asarray(generated.log_keep[n, part]),
            turn=turn,
            labels=labels,
        )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """One trajectory in the making."""

    example: Example
    id: int
    prompt: np.ndarray  # i32[k]
    segments: tuple[Segment, ...] = ()
    stop: Stop = Stop.NONE

    def add(self, segment: Segment, stop: Stop = Stop.NONE) -> Row:
        """The row with one more segment."""
        return dataclasses.replace(self, segments=(*self.segments, segment), stop=stop)

    @property
    def after(self) -> np.ndarray:
        """i32[k]: all that follows the prompt."""
        return np.concatenate([np.zeros(0, np.int32), *(s.tokens for s in self.segments)])

    @property
    def extent(self) -> int:
        """How many tokens follow the prompt."""
        return sum(len(s.tokens) for s in self.segments)

    @property
    def actions(self) -> int:
        """How many of them the model wrote."""
        return sum(len(s.tokens) for s in self.segments if s.turn >= 0)


def begin(
    examples: Sequence[Example], tokens: np.ndarray, lengths: np.ndarray, ids: np.ndarray
) -> list[Row]:
    """Rows with nothing but a prompt: `ids i32[P,G]` has those of each of the P examples."""
    return [
        Row(example=example, id=int(i), prompt=prompt[:length])
        for example, prompt, length, members in zip(examples, tokens, lengths, ids, strict=True)
        for i in members
    ]


def whole_turn(row: Row, generated: Generated, n: int) -> Row:
    """The row with all that row n of a call wrote."""
    turn = Segment.sampled(generated, n, generated.tokens.shape[1], 0, anchor=AT_PROMPT)
    return row.add(turn, Stop(int(generated.stop[n])))


def resume(sample: Sampler, rows: Sequence[Row | None], widest: int) -> Generated:
    """What comes next in each row; None is a row that has ended, which costs no new shape.

    Contexts are read anew and padded to one of a few widths: powers of two up to `widest`.
    """
    contexts = [
        np.zeros(0, np.int32) if row is None else np.concatenate([row.prompt, row.after])
        for row in rows
    ]
    longest = max(len(context) for context in contexts)
    width = min(max(2 * BUCKET, 1 << (longest - 1).bit_length()), widest)
    tokens = np.zeros((len(rows), width), np.int32)
    for place, context in zip(tokens, contexts, strict=True):
        place[: len(context)] = context
    lengths = np.array([len(context) for context in contexts], np.int32)
    ids = np.array([[0 if row is None else row.id] for row in rows], np.int32)
    offset = np.array([[0 if row is None else row.extent] for row in rows], np.int32)
    return jax.device_get(sample(tokens, lengths, ids, offset))


def record(
    rows: Sequence[Row],
    *,
    prompt_width: int,
    room: int,
    temperature: float,
    parts: Sequence[str],
    outcome: Mapping[str, np.ndarray],
    scored: np.ndarray,
    endless: bool,
) -> Trajectories:
    """Trajectories `[N, prompt_width + room]` of rows, each a group of its own.

    Args:
      rows: N of them.
      prompt_width, room: space for prompts, and for what follows one.
      temperature: at which they were drawn.
      parts: components that segments may have earned.
      outcome: {component: f64[N]}, earned at the last action token (the last of the prompt if
        there is none).
      scored: bool[N].
      endless: prompts have no number in a data set.
    """
    N, T = len(rows), prompt_width + room
    tokens, turn = np.zeros((N, T), np.int32), np.full((N, T), -1, np.int32)
    logp, keep = np.zeros((N, T), np.float32), np.zeros((N, T), np.float32)
    brought = {name for row in rows for s in row.segments for name in s.labels}
    labels = {name: np.full((N, T), NO_LABEL, np.int32) for name in LABELS if name in brought}
    earned = {name: np.zeros((N, T), np.float32) for name in [*outcome, *parts]}
    length = np.zeros(N, np.int32)
    for n, row in enumerate(rows):
        at = len(row.prompt)
        tokens[n, :at] = row.prompt
        last = at - 1
        for segment in row.segments:
            span = slice(at, at + len(segment.tokens))
            at = span.stop
            tokens[n, span], turn[n, span] = segment.tokens, segment.turn
            logp[n, span], keep[n, span] = segment.logp_sampler, segment.log_keep
            last = at - 1 if segment.turn >= 0 else last
            for name, label in segment.labels.items():
                labels[name][n, span] = label
            for name, value in segment.rewards.items():
                earned[name][n, at - 1] += value
        length[n] = at
        for name, values in outcome.items():
            earned[name][n, last] += values[n]
    own = np.arange(N, dtype=np.int32)
    return Trajectories(
        tokens=tokens,
        length=length,
        prompt_length=np.array([len(row.prompt) for row in rows], np.int32),
        action_mask=turn >= 0,
        turn=turn,
        group=own,
        id=np.array([row.id for row in rows], np.int32),
        prompt=np.array([-1 if endless else row.example.index for row in rows], np.int32),
        episode=own,
        reward_parts=earned,
        scored=scored,
        stop=np.array([row.stop for row in rows], np.int32),
        logp_sampler=logp,
        log_keep=keep,
        temperature=np.full(N, temperature, np.float32),
        version=np.zeros((N, T), np.int32),
        columns=labels,
    )
