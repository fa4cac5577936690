"""Collect a rollout batch: prompts drawn by index, completed, verified, written down.

Host side. Everything that is random is addressed by identity (row id, position), and prompts are
addressed by their index in the task's stream, so a rollout is a function of the parameters and of
two counters: the next prompt and the next row id.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from polopt.errors import PoloptError
from polopt.rollout import branches, episodes
from polopt.rollout.blocks import Block, highest, passed
from polopt.rollout.measure import outcome
from polopt.rollout.pool import VALUE, Pool, learn, pick
from polopt.rollout.rows import ANSWER, BUCKET, NO_LABEL, Row, Sampler, begin, record, whole_turn
from polopt.rollout.shares import UNSHARED, Shares
from polopt.tasks.score import SINGLE, score_all
from polopt.tasks.task import Example, Task
from polopt.trajectory.sampling import Branch, Sampling
from polopt.types import Trajectories

OTHER = -1  # the version of tokens that the policy did not draw, or not alone


@dataclasses.dataclass(frozen=True, kw_only=True)
class Writers:
    """Who writes the completions of a rollout; parameters are bound."""

    policy: Sampler
    other: Sampler | None = None  # stands in on a share of the prompts
    companion: Sampler | None = None
    version: int = 0  # of the policy's weights


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
    pool: Pool  # what is remembered of the prompts, this batch included


@dataclasses.dataclass(frozen=True)
class Collector:
    """What a rollout needs besides parameters: a task, a tokenizer and the room for tokens."""

    task: Task
    tokenizer: Any
    sampling: Sampling
    max_new_tokens: int
    max_length: int
    temperature: float
    seed: int = 0  # of the choice among prompts, where there is one
    shares: Shares = UNSHARED

    def __post_init__(self) -> None:
        branch, environment = self.sampling.branch, self.task.environment
        if branch and (branch.depth is None) == (environment is None):
            has = (
                "no environment: its trees take Branch(depth=)"
                if environment is None
                else "an environment: segments of its trees are turns, Branch(uncertain=)"
            )
            raise PoloptError(f"the task {self.task.name} has {has}")

    @property
    def turn_tokens(self) -> int:
        """Most tokens that one call of the sampler may write."""
        environment, branch = self.task.environment, self.sampling.branch
        if branch and branch.depth:
            return branches.segment_tokens(branch, self.max_new_tokens)
        most = self.max_new_tokens
        return min(most, environment.turn_tokens) if environment else most

    @functools.cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end a turn, besides the end of sequence."""
        environment = self.task.environment
        return episodes.stop_ids(environment, self.tokenizer) if environment else ()

    @property
    def entropy(self) -> bool:
        """Whether the sampler records the entropy of its draws."""
        return self.sampling.branch is not None and self.sampling.branch.uncertain is not None

    @property
    def repeated(self) -> bool:
        """Whether rows come from several calls of the sampler, one after another."""
        return self.task.environment is not None or self.sampling.branch is not None

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
        room = max(self._prompt_room(), 0)
        for example, tokens in zip(examples, ids, strict=True):
            if len(tokens) > room:
                raise PoloptError(
                    f"prompt {example.index} of {self.task.name} has {len(tokens)} tokens; the "
                    f"model's context of {self.max_length} less {self._taken()} leaves {room}"
                )
        length = np.array([len(tokens) for tokens in ids], np.int32)
        padded = np.zeros((len(ids), self._prompt_width(int(length.max()))), np.int32)
        for row, tokens in zip(padded, ids, strict=True):
            row[: len(tokens)] = tokens
        return padded, length

    def _prompt_room(self) -> int:
        # A turn is sampled with all of its room, however little of it a row has left.
        last = self.turn_tokens if self.repeated else 0
        return self.max_length - self.room - last

    def _prompt_width(self, longest: int) -> int:
        return min(-(-longest // BUCKET) * BUCKET, self._prompt_room())

    def _taken(self) -> str:
        """What of the context is not for prompts."""
        taken = f"max_new_tokens={self.max_new_tokens}"
        if self.task.environment is not None:
            taken += f", {self.room - self.max_new_tokens} for observations"
        return taken + f" and {self.turn_tokens} for a last turn" * self.repeated

    def collect(
        self, writers: Writers, prompts: int, cursor: Cursor, pool: Pool | None = None
    ) -> Rollout:
        """Sample `prompts` groups, again and again if the sampling spec wants a refill.

        Args:
          writers: those that the sampling spec asks for.
          prompts: groups of the batch.
          cursor: where the run stands.
          pool: what is remembered of the prompts (`new_pool`), if the spec remembers any.
        """
        refill, keep = self.sampling.refill, self.sampling.keep
        drawn = math.ceil(prompts / keep.fraction) if keep else prompts
        pool = pool or {}
        seconds = {"sample": 0.0, "reward": 0.0}
        kept: list[Block] = []
        rejected: list[Block] = []
        rounds = 0
        while True:
            missing = prompts - sum(block.groups for block in kept)
            if missing <= 0 or (refill and rounds == refill.max_rounds):
                break
            # The whole batch is drawn in every round: one compiled shape.
            block, pool = self._block(writers, drawn, cursor, pool, seconds)
            cursor = Cursor(prompt=cursor.prompt + drawn, row=cursor.row + block.rows)
            rounds += 1
            if refill is None:
                kept.append(block.select(highest(keep.by, block, prompts)) if keep else block)
                continue
            good = passed(refill.by, block)
            kept.append(block.select(good))
            rejected.append(block.select(~good))
        if refill and refill.short == "error" and missing > 0:
            raise PoloptError(
                f"after {rounds} rounds of sampling {missing} of {prompts} groups "
                "still fail the refill's test"
            )
        # Groups that failed fill the batch up; a filter on the reward side gives them no weight.
        batch = Block.join([*kept, *rejected]).first(prompts)
        return Rollout(
            trajectories=batch.trajectories,
            examples=batch.examples,
            completions=batch.completions,
            cursor=cursor,
            rounds=rounds,
            seconds=seconds,
            pool=pool,
        )

    def _block(
        self,
        writers: Writers,
        prompts: int,
        cursor: Cursor,
        pool: Pool,
        seconds: dict[str, float],
    ) -> tuple[Block, Pool]:
        sampling, G = self.sampling, self.sampling.group_size
        examples = self._examples(prompts, cursor, pool)
        ids = (cursor.row + np.arange(prompts * G, dtype=np.int32)).reshape(prompts, G)
        others = self._others(prompts, cursor)
        drawn = self.shares.drawn(prompts)
        start = time.perf_counter()
        rows = self._draw_all(writers, examples[drawn], ids[drawn], others[drawn])
        beside = self._beside(writers, examples[drawn], cursor.prompt + drawn.start, pool)
        middle = time.perf_counter()

        def written(share: slice) -> tuple[Trajectories, list[str]]:
            own, texts = self.write(_of_groups(rows, share, G))
            if sampling.companion:
                near = _of_groups(beside, share, sampling.companion.samples)
                value = self._reduced(near, examples[drawn][share], pool)
                columns = {**own.columns, sampling.companion.column: np.repeat(value, G)}
                own = dataclasses.replace(own, columns=columns)
            return own, texts

        trajectories, completions = self.shares.written(prompts, written)
        shared = sampling.mixture is not None and sampling.mixture.alpha > 0
        foreign = (others | shared).repeat(G)[:, None]
        version = np.full_like(trajectories.version, writers.version)
        trajectories = dataclasses.replace(
            trajectories,
            group=np.repeat(np.arange(prompts, dtype=np.int32), G),
            version=np.where(foreign, OTHER, version),
        )
        if sampling.prioritise:
            pool = learn(sampling.prioritise, pool, trajectories)
        if sampling.companion and sampling.companion.cache:
            value = trajectories.columns[sampling.companion.column][::G]
            pool = {**pool, VALUE: pool[VALUE].copy()}
            pool[VALUE][[e.index for e in examples]] = value
        seconds["sample"] += middle - start
        seconds["reward"] += time.perf_counter() - middle
        return Block(trajectories, [e for e in examples for _ in range(G)], completions, G), pool

    def _examples(self, prompts: int, cursor: Cursor, pool: Pool) -> list[Example]:
        """The problems of a block: the next ones, or those that the spec prefers."""
        chosen = cursor.prompt + np.arange(prompts)
        if self.sampling.prioritise:
            chosen = pick(self.sampling.prioritise, pool, prompts, (self.seed, cursor.prompt))
        return [self.task.train(int(i)) for i in chosen]

    def _others(self, prompts: int, cursor: Cursor) -> np.ndarray:
        """bool[P]: the prompts of a block on which another model stands in for the policy."""
        mixture = self.sampling.mixture
        count = round(prompts * mixture.share) if mixture else 0
        place = np.random.default_rng((self.seed, cursor.prompt, 1)).permutation(prompts)
        return place < count

    def _draw_all(
        self, writers: Writers, examples: list[Example], ids: np.ndarray, others: np.ndarray
    ) -> list[Row]:
        """The rows of a block in the order of its prompts, each from the model whose turn it is."""
        found: dict[int, Row] = {}
        for writer, chosen in ((writers.policy, ~others), (writers.other, others)):
            if chosen.any():
                assert writer is not None
                own = [examples[i] for i in np.flatnonzero(chosen)]
                found |= {row.id: row for row in self.draw(writer, own, ids[chosen], fork=True)}
        return [found[int(i)] for i in ids.reshape(-1)]

    def _beside(
        self, writers: Writers, examples: list[Example], place: int, pool: Pool
    ) -> list[Row]:
        """The companion completions of examples; none if all their prompts are remembered.

        `place` is that of the first example in the stream of prompts.
        """
        spec, index = self.sampling.companion, np.array([e.index for e in examples], int)
        if spec is None or (spec.cache and not np.isnan(pool[VALUE][index]).any()):
            return []
        assert writers.companion is not None
        # A reference's draws belong to the prompt, the policy's to its place in the stream.
        first = index if spec.policy == "reference" else place + np.arange(len(examples))
        ids = first[:, None] * spec.samples + np.arange(spec.samples)
        return self.draw(writers.companion, examples, ids.astype(np.int32))

    def _reduced(self, beside: list[Row], examples: list[Example], pool: Pool) -> np.ndarray:
        """f32[P]: what the companion completions come to, or what is remembered of them."""
        spec, index = self.sampling.companion, np.array([e.index for e in examples], int)
        assert spec is not None
        if not beside:
            return pool[VALUE][index]
        returns = outcome(self.write(beside)[0]).reshape(len(examples), -1)
        value = np.asarray(spec.reduce(returns), np.float32)
        if value.shape != index.shape:
            raise PoloptError(
                f"companion: reduce gave shape {value.shape} for returns of shape "
                f"{returns.shape}; give one number per prompt"
            )
        return value

    def draw(
        self, sample: Sampler, examples: Sequence[Example], ids: np.ndarray, *, fork: bool = False
    ) -> list[Row]:
        """What the policy makes of P examples: N = P*G rows with `ids i32[P,G]`, neighbours.

        With `fork` each group is drawn as the tree that the sampling spec asks for, if it does.
        """
        if not examples:
            return []
        tokens, lengths = self.prompts(examples)
        rows = begin(examples, tokens, lengths, ids)
        branch = self.sampling.branch
        if branch and (fork or branch.depth):
            chosen = branch if fork else branch.straight(ids.shape[1])
            return self._trees(sample, rows, ids.shape[1], chosen)
        if self.task.environment is not None:
            return episodes.play(sample, rows, (tokens, lengths), self.rules)
        generated = jax.device_get(sample(tokens, lengths, ids))
        return [whole_turn(row, generated, n) for n, row in enumerate(rows)]

    def _trees(
        self, sample: Sampler, rows: list[Row], group_size: int, branch: Branch
    ) -> list[Row]:
        if branch.depth is None:
            take = functools.partial(episodes.take_turns, rules=self.rules, size=group_size)
            places = episodes.open_episodes(rows, self.rules, group_size)
        else:
            take = branches.take_segment(self.max_new_tokens, branch.depth)
            places = [episodes.Episode(row=row, state=None) for row in rows]
        groups = [places[i : i + group_size] for i in range(0, len(places), group_size)]
        log_vocab = math.log(self.tokenizer.vocab_size)
        return branches.grow(sample, groups, take, branch, self._widest, log_vocab)

    @property
    def _widest(self) -> int:
        """The longest context that leaves a call its tokens."""
        return self.max_length - self.turn_tokens

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
            widest=self._widest,
            shares=self.shares,
        )

    def write(self, rows: Sequence[Row]) -> tuple[Trajectories, list[str]]:
        """Trajectories of rows, each a group of its own, with their outcome; and texts to read.

        The outcome is judged on all that follows the prompt; what people read of it marks
        observations, as in ``15 - 43 = -⟨28⟩``.
        """
        texts = [self.tokenizer.decode(row.after.tolist()) for row in rows]
        scores = score_all(self.task.reward, texts, [row.example for row in rows])
        environment = self.task.environment
        trajectories = record(
            rows,
            prompt_width=self._prompt_width(max(len(row.prompt) for row in rows)),
            room=self.room,
            temperature=self.temperature,
            parts=environment.parts if environment else (),
            # A batch of abstentions has no names of components, but a reward of zero all the same.
            outcome=scores.parts or {SINGLE: np.zeros(len(rows))},
            scored=scores.scored,
            endless=self.task.size is None,
        )
        columns = {**trajectories.columns, **self._answers(texts)}
        trajectories = dataclasses.replace(trajectories, columns=columns)
        return trajectories, [self._shown(row) for row in rows] if environment else texts

    def _answers(self, texts: list[str]) -> dict[str, np.ndarray]:
        """Labels i32[N] of the answers, equal where they are; nothing if the task finds none."""
        if self.task.answer is None:
            return {}
        found = (self.task.answer(text) for text in texts)
        labels = [NO_LABEL if answer is None else episodes.stable_hash(answer) for answer in found]
        return {ANSWER: np.array(labels, np.int32)}

    def _shown(self, row: Row) -> str:
        texts = (self.tokenizer.decode(part.tokens.tolist()) for part in row.segments)
        marked = zip(row.segments, texts, strict=True)
        return "".join(text if part.turn >= 0 else f"⟨{text}⟩" for part, text in marked)


def _of_groups(rows: list[Row], groups: slice, size: int) -> list[Row]:
    """The rows of some groups of `size` neighbours."""
    return rows[groups.start * size : groups.stop * size]
