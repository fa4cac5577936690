"""Collect a rollout batch: prompts drawn by index, completed, verified, written down.

Host side. Everything that is random is addressed by identity (row id, position), and prompts are
addressed by their index in the task's stream, so a rollout is a function of the parameters and of
two counters: the next prompt and the next row id.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from polopt.build import earned_at, turns
from polopt.errors import PoloptError
from polopt.rollout.sampler import Generated
from polopt.tasks.score import SINGLE, score_all
from polopt.tasks.task import Example, Task
from polopt.trajectory.sampling import Sampling
from polopt.types import Trajectories

BUCKET = 16  # prompts are padded to a multiple, so that few shapes are ever compiled

# (prompts i32[P,S], lengths i32[P], ids i32[P,G]) -> Generated with N = P*G rows
Sampler = Callable[[np.ndarray, np.ndarray, np.ndarray], Generated]


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

    def prompts(self, examples: Sequence[Example]) -> tuple[np.ndarray, np.ndarray]:
        """i32[P,S] and i32[P]: the rendered prompts, padded to a bucket.

        Raises:
          PoloptError: a prompt leaves no room for a completion.
        """
        ids = [self.tokenizer.prompt(example.prompt) for example in examples]
        room = self.max_length - self.max_new_tokens
        for example, tokens in zip(examples, ids, strict=True):
            if len(tokens) > room:
                raise PoloptError(
                    f"prompt {example.index} of {self.task.name} has {len(tokens)} tokens; the "
                    f"model's context of {self.max_length} less max_new_tokens="
                    f"{self.max_new_tokens} leaves {room}"
                )
        length = np.array([len(tokens) for tokens in ids], np.int32)
        width = min(-(-int(length.max()) // BUCKET) * BUCKET, room)
        padded = np.zeros((len(ids), width), np.int32)
        for row, tokens in zip(padded, ids, strict=True):
            row[: len(tokens)] = tokens
        return padded, length

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
        generated = jax.device_get(sample(tokens, lengths, ids))
        best = jax.device_get(greedy(tokens, lengths, ids[:, :1])) if greedy else None
        middle = time.perf_counter()
        rows = [example for example in examples for _ in range(G)]
        trajectories, completions = self.write(
            rows, np.repeat(tokens, G, 0), np.repeat(lengths, G), generated, ids.reshape(-1)
        )
        trajectories = dataclasses.replace(
            trajectories, group=np.repeat(np.arange(prompts, dtype=np.int32), G)
        )
        if best is not None:
            companion, _ = self.write(examples, tokens, lengths, best, ids[:, 0])
            total = sum(part.sum(1) for part in companion.reward_parts.values())
            columns = {"greedy_return": np.repeat(total, G).astype(np.float32)}
            trajectories = dataclasses.replace(trajectories, columns=columns)
        seconds["sample"] += middle - start
        seconds["reward"] += time.perf_counter() - middle
        return _Block(trajectories, rows, completions, G)

    def write(
        self,
        examples: Sequence[Example],
        tokens: np.ndarray,
        start: np.ndarray,
        generated: Generated,
        ids: np.ndarray,
    ) -> tuple[Trajectories, list[str]]:
        """Trajectories of N rows, each a group of its own, and their texts; rewards included."""
        n, S = tokens.shape
        C = generated.tokens.shape[1]
        length = (start + generated.length).astype(np.int32)
        columns = np.arange(S + C)
        mask = (columns >= start[:, None]) & (columns < length[:, None])
        drawn = np.arange(C) < generated.length[:, None]

        def scatter(values: np.ndarray) -> np.ndarray:
            out = np.zeros((n, S + C), values.dtype)
            out[mask] = values[drawn]
            return out

        completions = [
            self.tokenizer.decode(row[:k].tolist())
            for row, k in zip(generated.tokens, generated.length, strict=True)
        ]
        parts, scored = self._rewards(examples, completions, mask, start)
        own = np.arange(n, dtype=np.int32)
        return Trajectories(
            tokens=np.where(mask, scatter(generated.tokens), np.pad(tokens, ((0, 0), (0, C)))),
            length=length,
            prompt_length=start,
            action_mask=mask,
            turn=turns(mask),
            group=own,
            id=ids,
            prompt=self._numbers(examples),
            episode=own,
            reward_parts=parts,
            scored=scored,
            stop=np.asarray(generated.stop),
            logp_sampler=scatter(generated.logp_sampler),
            log_keep=scatter(generated.log_keep),
            temperature=np.full(n, self.temperature, np.float32),
            version=np.zeros((n, S + C), np.int32),
            columns={},
        ), completions

    def _numbers(self, examples: Sequence[Example]) -> np.ndarray:
        endless = self.task.size is None
        return np.array([-1 if endless else e.index for e in examples], np.int32)

    def _rewards(
        self,
        examples: Sequence[Example],
        completions: list[str],
        mask: np.ndarray,
        start: np.ndarray,
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        scores = score_all(self.task.reward, completions, examples)
        rows, where = np.arange(len(examples)), earned_at(mask, start)
        # A batch of abstentions has no names of components, but a reward of zero all the same.
        totals = scores.parts or {SINGLE: np.zeros(len(examples))}
        parts = {name: np.zeros(mask.shape, np.float32) for name in totals}
        for name, values in totals.items():
            parts[name][rows, where] = values
        return parts, scores.scored


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
            return dataclasses.replace(made, turn=widen(x.turn, -1))

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
