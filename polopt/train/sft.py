"""Supervised fine-tuning: policy optimisation in which every demonstration has the return one.

The loss is `-mean log p(token | those before it)` over the tokens of a step that an assistant
writes: REINFORCE with credit 1 and a token mean (`supervised`). So it runs through the update of
`polopt train`, micro-batches, adapters and checkpoints included, and leaves the same run folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Sequence

import jax
import numpy as np

from polopt.aggregate import token_mean
from polopt.algorithm import Algorithm, init
from polopt.build import build
from polopt.compose import prepare
from polopt.errors import PoloptError
from polopt.models.kernels import describe
from polopt.models.lora import LoraModel, check_applied
from polopt.reward import outcome_return
from polopt.rollout.collect import OTHER
from polopt.train import checkpoint
from polopt.train.demonstrations import Demonstration, demonstrations, task_to_learn
from polopt.train.micro_batches import MicroBatches
from polopt.train.models import parts
from polopt.train.parallel import Jit
from polopt.train.policy import Policy, adapted, attending, instructed, load_policy
from polopt.train.record import Record, open_record
from polopt.train.rows import round_up
from polopt.train.setup import make_optimizer, versions
from polopt.train.sft_config import SftConfig
from polopt.train.sinks import Fanout, Sink, Summary
from polopt.train.state import Progress, restore, save
from polopt.train.stop import StopRequest, stop_on_signals
from polopt.train.update import init_state, make_update
from polopt.trajectory import policy_gradient
from polopt.transform import chain
from polopt.types import Trajectories, info_values

MOST_WIDTHS = 3  # compiled programs, one for each width of a batch
NARROWER = 0.7  # of the next width, or a width is not worth a program


def supervised() -> Algorithm:
    """Maximum likelihood as a method: what was demonstrated has the return one."""
    return Algorithm(
        name="supervised",
        reward=chain(outcome_return()),
        trajectory=chain(policy_gradient()),
        aggregate=token_mean(),
    )


def sft(config: SftConfig, *, policy: Policy | None = None, sinks: Sequence[Sink] = ()) -> Summary:
    """Fine-tune a model on demonstrations and leave a run folder behind.

    A run is a function of its configuration; one that was stopped goes on with `resume`.

    Args:
      config: of the run.
      policy: instead of the one that `config` names.
      sinks: where events go besides the run folder.

    Raises:
      PoloptError: anything that cannot be done as asked, in one line, before time is spent on it.
    """
    policy, rows, config = _prepared(config, policy)
    if isinstance(policy.model, LoraModel):
        check_applied(policy.model, policy.params)
    policy = attending(policy, config.attention, Jit().platform)
    with open_record(config) as record, contextlib.ExitStack() as held:
        stop = held.enter_context(stop_on_signals())
        return _Run(config, policy, rows, record, Fanout([record, *sinks])).go(stop)


def _prepared(
    config: SftConfig, policy: Policy | None
) -> tuple[Policy, list[Demonstration], SftConfig]:
    """The model, its rows, and the configuration with what they decide filled in."""
    task = task_to_learn(config)
    policy = adapted(policy or load_policy(config.model, config.compute_dtype), config)
    policy = instructed(policy, config.system, "" if task is None else task.instruction)
    rows = demonstrations(config, task, policy.tokenizer)
    room = policy.model.config.max_length
    for number, row in enumerate(rows):
        if len(row.tokens) > room:
            raise PoloptError(
                f"row {number + 1} of {config.data or config.task} has {len(row.tokens)} tokens; "
                f"the model's context holds {room}"
            )
    config = dataclasses.replace(
        config,
        system=policy.tokenizer.system,
        max_new_tokens=config.max_new_tokens or max(sum(row.learned) for row in rows),
        run=str(config.folder),
    )
    return policy, rows, config


class _Run:
    """One run: what is compiled, and the loop over batches."""

    def __init__(
        self,
        config: SftConfig,
        policy: Policy,
        rows: list[Demonstration],
        record: Record,
        sink: Fanout,
    ) -> None:
        self.config, self.record, self.sink, self.model = config, record, sink, policy.model
        self.batches = Batches(rows, config)
        self.steps = self.batches.per_epoch * config.epochs
        self.started = time.perf_counter()
        self.alg = supervised()
        self.moving, fixed = parts(policy.model, policy.params)
        self.given = {} if fixed is None else {"policy": fixed}
        self.optimizer, self.schedule = make_optimizer(config, self.steps)
        update = make_update(self.alg, {"policy": policy.model}, self.optimizer, remat=config.remat)
        self.micro_batches = MicroBatches(
            config.batch, most_rows=config.micro_batch, most_tokens=config.micro_tokens
        )
        self.parallel = Jit()
        self.update = self.parallel.step(update)
        self.prepare = jax.jit(functools.partial(prepare, self.alg))

    def go(self, stop: StopRequest) -> Summary:
        """Run to the last step, or to the end of the present one after a stop request."""
        config, now = self.config, self._resume()
        self.sink.start(
            config,
            {
                **versions(),
                "attention": describe(self.model.attention, self.model.config.head_dim),
                "resumed_from": now.step,
                "steps": self.steps,
                "rows": len(self.batches.rows),
                "loss": repr(self.alg.trajectory),
            },
        )
        while now.step < self.steps and not stop:
            self._step(now)
            if config.checkpoint_every and now.step % config.checkpoint_every == 0:
                self._save(now)
        if now.saved < now.step:
            self._save(now)
        summary = Summary(
            run=self.record.path,
            steps=now.step,
            seconds=time.perf_counter() - self.started,
            first=now.first,
            last=now.last,
            checkpoint=checkpoint.path_of(self.record.checkpoints, now.step),
            stopped=stop.signal if now.step < self.steps else None,
        )
        self.sink.finish(summary)
        return summary

    def _step(self, now: Progress) -> None:
        start = time.perf_counter()
        batch = self.batches.at(now.step)
        prepared, _ = self.prepare(batch)
        skipped, rows = int(now.state.skipped), np.arange(len(batch.length))
        splits, _ = self.micro_batches.cut(batch, rows)
        now.state, info = self.update(now.state, self.given, batch, prepared, splits, None)
        values = {name: float(x) for name, x in jax.device_get(info_values(info)).items()}
        now.step += 1
        seconds, tokens = time.perf_counter() - start, int(batch.action_mask.sum())
        moved = max(int(now.state.step - now.state.skipped) - 1, 0)
        metrics = {
            "supervised/loss": values["policy/loss"],
            "supervised/tokens": tokens,
            "update/grad_norm": values["update/grad_norm"],
            "update/param_change": values["update/param_change"],
            "update/learning_rate": float(np.asarray(self.schedule(moved))),
            "update/skipped": int(now.state.skipped),
            "time/step": seconds,
            "time/tokens_per_second": int(batch.length.sum()) / seconds,
        }
        now.first, now.last = now.first or metrics, metrics
        still = int(now.state.skipped) > skipped
        now.count_skipped(still, step=now.step, checkpoints=self.record.checkpoints)
        self.sink.step(now.step, metrics)

    def _resume(self) -> Progress:
        start = Progress(init_state({"policy": self.moving}, self.optimizer, init(self.alg)))
        if not self.record.resumed:
            return start
        found = restore(self.record.checkpoints, start)
        self.record.resume_at(found.step if found else -1)
        return found or start

    def _save(self, now: Progress) -> None:
        save(self.record.checkpoints, now, self.parallel)


class Batches:
    """Batches of rows of about one length, by step; few widths, so that few programs compile.

    Every epoch shows each row once, in an order of its own.
    """

    def __init__(self, rows: Sequence[Demonstration], config: SftConfig) -> None:
        self.rows = rows
        self._take, self._seed = config.batch, config.seed
        lengths = np.array([len(row.tokens) for row in rows])
        self.widths = widths(lengths)
        self._class = np.searchsorted(self.widths, lengths)
        self.per_epoch = -(-len(rows) // config.batch)
        self._order = functools.lru_cache(maxsize=1)(self._deal)

    def at(self, step: int) -> Trajectories:
        """The batch of a step, `[batch,T]`, padded with empty rows."""
        epoch, place = divmod(step, self.per_epoch)
        chosen = self._order(epoch)[place]
        width = int(self.widths[self._class[chosen].max()])
        return packed([self.rows[i] for i in chosen], self._take, width)

    def _deal(self, epoch: int) -> list[np.ndarray]:
        """Row numbers of every batch: what a width has left over goes to the next wider one."""
        rng = np.random.default_rng([self._seed, epoch])
        left, batches = np.zeros(0, np.int64), []
        for number in range(len(self.widths)):
            own = rng.permutation(np.flatnonzero(self._class == number))
            pool = np.concatenate([left, own])
            whole = len(pool) // self._take * self._take
            batches += list(pool[:whole].reshape(-1, self._take))
            left = pool[whole:]
        batches += [left] if len(left) else []
        return [batches[i] for i in rng.permutation(len(batches))]


def widths(lengths: np.ndarray) -> np.ndarray:
    """Rising widths for rows of these lengths, at most three, in steps of 8.

    >>> widths(np.array([20, 22, 24, 60, 61, 90])).tolist()
    [24, 64, 96]
    >>> widths(np.array([80, 85, 90])).tolist()
    [96]
    """
    ranked = np.sort(lengths)
    ends = [ranked[-(-len(ranked) * k // MOST_WIDTHS) - 1] for k in range(1, MOST_WIDTHS + 1)]
    chosen: list[int] = []
    for end in reversed(ends):
        width = round_up(int(end), 8)
        if not chosen or width <= NARROWER * chosen[-1]:
            chosen.append(width)
    return np.array(chosen[::-1])


def packed(rows: Sequence[Demonstration], size: int, width: int) -> Trajectories:
    """Trajectories `[size,width]` of rows: the return of each is one; the rest is padding."""
    filled = [*rows, *[Demonstration([], [])] * (size - len(rows))]
    first = [row.learned.index(True) if row.tokens else 0 for row in filled]
    made = build(
        [row.tokens[:k] for row, k in zip(filled, first, strict=True)],
        [row.tokens[k:] for row, k in zip(filled, first, strict=True)],
        [1.0] * size,
        group=1,
        action_mask=[row.learned[k:] for row, k in zip(filled, first, strict=True)],
        width=width,
    )
    real = made.length > 0
    return dataclasses.replace(
        made,
        group=np.where(real, made.group, -1),
        episode=np.where(real, made.episode, -1),
        scored=real,
        version=np.full_like(made.version, OTHER),  # no policy of the run wrote them
    )
