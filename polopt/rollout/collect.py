"""Collect a rollout batch: prompts drawn by index, completed, verified, written down.

Host side. Everything that is random is addressed by identity (row id, position), and prompts are
addressed by their index in the task's stream, so a rollout is a function of the parameters and of
two counters: the next prompt and the next row id.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from polopt.errors import PoloptError
from polopt.rollout import episodes
from polopt.rollout.rows import BUCKET, LABELS, NO_LABEL, Row, Sampler, Segment, begin, record
from polopt.tasks.score import SINGLE, score_all
from polopt.tasks.task import Example, Task
from polopt.trajectory.sampling import Sampling
from polopt.types import Stop, Trajectories

@dataclasses.dataclass(frozen=True, kw_only=True)
class Cursor:
    """Where a run stands in its stream of prompts and row ids."""

    prompt: int = 0
    row: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rollout:
    """A batch with what people want to see of it."""

    trajectories: Trajectories
    examples: list[Example]  # one per row
    completions: list[str]
    cursor: Cursor
    rounds: int
    seconds: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Collector:
    """What a rollout needs besides parameters: a task, a tokenizer and the room for tokens."""

    task: Task
    tokenizer: Any
    sampling: Sampling
    max_new_tokens: int
    max_length: int
    temperature: float

    @property
    def turn_tokens(self) -> int:
        """Most tokens that one call of the sampler may write."""
        environment = self.task.environment
        most = self.max_new_tokens
        return min(most, environment.turn_tokens) if environment else most

    @functools.cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end a turn, besides the end of sequence."""
        environment = self.task.environment
        return episodes.stop_ids(environment, self.tokenizer) if environment else ()

    @property
    def room(self) -> int:
        """Tokens that may follow a prompt, observations included."""
        environment = self.task.environment
        most = self.max_new_tokens
        return episodes.room_of(environment, most) if environment else most

    def prompts(self, examples: Sequence[Example]) -> tuple[np.ndarray, np.ndarray]:
        """i32[P,S] and i32[P]: the rendered prompts, padded to a bucket.

        Raises:
          PoloptError: a prompt leaves no room for a completion.
        """
        ids = [self.tokenizer.prompt(example.prompt) for example in examples]
        room = self._prompt_room()
        for example, tokens in zip(examples, ids, strict=True):
            if len(tokens) > room:
                raise PoloptError(
                    f"prompt {example.index} of {self.task.name} has {len(tokens)} tokens; the "
                    f"model's context of {self.max_length} less {self._taken()} leaves {room}"
                )
        length = np.array([len(tokens) for tokens in ids], np.int32)
        width = min(-(-int(length.max()) // BUCKET) * BUCKET, room)
        padded = np.zeros((len(ids), width), np.int32)
        for row, tokens in zip(padded, ids, strict=True):
            row[: len(tokens)] = tokens
        return padded, length

    def _prompt_room(self) -> int:
        # A turn is sampled with all of its room, however little of it a row has left.
        last = self.turn_tokens if self.task.environment else 0
        return self.max_length - self.room - last

    def _taken(self) -> str:
        """What of the context is not for prompts."""
        if self.task.environment is None:
            return f"max_new_tokens={self.max_new_tokens}"
        return (
            f"{self.room} for an episode (max_new_tokens={self.max_new_tokens} and observations) "
            f"and {self.turn_tokens} for its last turn"
        )

    def collect(
        self, sample: Sampler, greedy: Sampler | None, prompts: int, cursor: Cursor
    ) -> Rollout:
        """Sample `prompts` groups, again and again if the sampling spec wants a refill."""
        refill = self.sampling.refill
        seconds = {"sample": 0.0, "reward": 0.0}
        kept: list[_Block] = []
        rejected: list[_Block] = []
        rounds = 0
        while True:
            missing = prompts - sum(block.groups for block in kept)
            if missing <= 0 or (refill and rounds == refill.max_rounds):
                break
            # The whole batch is drawn in every round: one compiled shape.
            block = self._block(sample, greedy, prompts, cursor, seconds)
            cursor = Cursor(prompt=cursor.prompt + prompts, row=cursor.row + block.rows)
            rounds += 1
            if refill is None:
                kept.append(block)
                continue
            passed = _passed(refill.by, block)
            kept.append(block.select(passed))
            rejected.append(block.select(~passed))
        if refill and refill.short == "error" and missing > 0:
            raise PoloptError(
                f"after {rounds} rounds of sampling {missing} of {prompts} groups "
                "still fail the refill's test"
            )
        # Groups that failed fill the batch up; a filter on the reward side gives them no weight.
        batch = _Block.join([*kept, *rejected]).first(prompts)
        return Rollout(
            trajectories=batch.trajectories,
            examples=batch.examples,
            completions=batch.completions,
            cursor=cursor,
            rounds=rounds,
            seconds=seconds,
        )

    def _block(
        self,
        sample: Sampler,
        greedy: Sampler | None,
        prompts: int,
        cursor: Cursor,
        seconds: dict[str, float],
    ) -> _Block:
        G = self.sampling.group_size
        examples = [self.task.train(cursor.prompt + i) for i in range(prompts)]
        tokens, lengths = self.prompts(examples)
        ids = (cursor.row + np.arange(prompts * G, dtype=np.int32)).reshape(prompts, G)
        start = time.perf_counter()
        rows = self.draw(sample, examples, ids)
        best = self.draw(greedy, examples, ids[:, :1]) if greedy else None
        middle = time.perf_counter()
        trajectories, completions = self.write(rows)
        trajectories = dataclasses.replace(
            trajectories, group=np.repeat(np.arange(prompts, dtype=np.int32), G)
        )
        if best is not None:
            companion, _ = self.write(best)
            total = sum(part.sum(1) for part in companion.reward_parts.values())
            columns = {"greedy_return": np.repeat(total, G).astype(np.float32)}
            columns = {**trajectories.columns, **columns}
            trajectories = dataclasses.replace(trajectories, columns=columns)
        seconds["sample"] += middle - start
        seconds["reward"] += time.perf_counter() - middle
        return _Block(trajectories, [row.example for row in rows], completions, G)

    def draw(self, sample: Sampler, examples: Sequence[Example], ids: np.ndarray) -> list[Row]:
        """What the policy makes of P examples: N = P*G rows with `ids i32[P,G]`, neighbours."""
        tokens, lengths = self.prompts(examples)
        rows = begin(examples, tokens, lengths, ids)
        if self.task.environment is not None:
            return episodes.play(sample, rows, (tokens, lengths), self.rules)
        generated = jax.device_get(sample(tokens, lengths, ids))
        return [
            row.add(Segment.sampled(generated, n, self.room, 0), Stop(int(generated.stop[n])))
            for n, row in enumerate(rows)
        ]

    @functools.cached_property
    def rules(self) -> episodes.Rules:
        """What bounds an episode of a task that has an environment."""
        assert self.task.environment is not None
        return episodes.Rules(
            environment=self.task.environment,
            tokenizer=self.tokenizer,
            task=self.task.name,
            max_new_tokens=self.max_new_tokens,
            room=self.room,
            widest=self.max_length - self.turn_tokens,
        )

    def write(self, rows: Sequence[Row]) -> tuple[Trajectories, list[str]]:
        """Trajectories of rows, each a group of its own, and their texts; the outcome is judged."""
        texts = [self.tokenizer.decode(row.after.tolist()) for row in rows]
        scores = score_all(self.task.reward, texts, [row.example for row in rows])
        widest = max(len(row.prompt) for row in rows)
        environment = self.task.environment
        trajectories = record(
            rows,
            prompt_width=min(-(-widest // BUCKET) * BUCKET, self._prompt_room()),
            room=self.room,
            temperature=self.temperature,
            parts=environment.parts if environment else (),
            # A batch of abstentions has no names of components, but a reward of zero all the same.
            outcome=scores.parts or {SINGLE: np.zeros(len(rows))},
            scored=scores.scored,
            endless=self.task.size is None,
        )
        return trajectories, texts


def _passed(test: Callable, block: _Block) -> np.ndarray:
    passed = np.asarray(test(block.trajectories), bool)
    groups = passed.reshape(-1, block.size)
    if (groups.any(1) != groups.all(1)).any():
        raise PoloptError(
            "the refill's test passes a part of a group: give True or False on all rows of a "
            "group alike"
        )
    return passed


@dataclasses.dataclass(frozen=True)
class _Block:
    """Whole groups of `size` neighbouring rows."""

    trajectories: Trajectories
    examples: list[Example]
    completions: list[str]
    size: int

    @property
    def rows(self) -> int:
        return len(self.examples)

    @property
    def groups(self) -> int:
        return self.rows // self.size

    def select(self, rows: np.ndarray) -> _Block:
        chosen = np.flatnonzero(rows)
        taken = jax.tree.map(lambda x: x[chosen], self.trajectories)
        own = np.arange(len(chosen), dtype=np.int32)
        taken = dataclasses.replace(taken, group=own // self.size, episode=own)
        return _Block(
            taken,
            [self.examples[i] for i in chosen],
            [self.completions[i] for i in chosen],
            self.size,
        )

    def first(self, groups: int) -> _Block:
        return self.select(np.arange(self.rows) < groups * self.size)

    @staticmethod
    def join(blocks: list[_Block]) -> _Block:
        T = max(block.trajectories.tokens.shape[1] for block in blocks)
        names = {name: None for block in blocks for name in block.trajectories.reward_parts}

        def widen(x: np.ndarray, fill: int = 0) -> np.ndarray:
            if x.ndim < 2:
                return x
            return np.pad(x, ((0, 0), (0, T - x.shape[1])), constant_values=fill)

        def wide(x: Trajectories) -> Trajectories:
            absent = np.zeros(x.tokens.shape, np.float32)
            parts = {name: x.reward_parts.get(name, absent) for name in names}
            made = jax.tree.map(widen, dataclasses.replace(x, reward_parts=parts))
            labels = {k: widen(v, NO_LABEL) for k, v in x.columns.items() if k in LABELS}
            columns = {**made.columns, **labels}
            return dataclasses.replace(made, turn=widen(x.turn, -1), columns=columns)

        joined = jax.tree.map(
            lambda *xs: np.concatenate(xs), *(wide(block.trajectories) for block in blocks)
        )
        block = _Block(
            joined,
            [e for b in blocks for e in b.examples],
            [c for b in blocks for c in b.completions],
            blocks[0].size,
        )
        return block.select(np.ones(block.rows, bool))
