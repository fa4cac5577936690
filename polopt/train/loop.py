"""The host loop: rollout, score, prepare, update, record. Everything with an effect is here.

A run is a function of its configuration: prompts and draws are addressed by counters, so a run
that is killed anywhere and resumed repeats the steps since its last checkpoint bit for bit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from polopt.algorithm import Algorithm, init, needs, pieces, single_step, wants
from polopt.compose import prepare, reweigh
from polopt.errors import PoloptError
from polopt.models import ValueModel
from polopt.rollout.collect import Cursor, Rollout
from polopt.rollout.draw import Decoding
from polopt.rollout.measure import rollout_metrics
from polopt.tasks import Task
from polopt.train import checkpoint
from polopt.train.config import TrainConfig
from polopt.train.evaluate import evaluation, views
from polopt.train.parallel import Parallel, choose
from polopt.train.record import SCHEMA, Record, open_record
from polopt.train.rows import assign_steps, pad_rows, round_up
from polopt.train.setup import (
    Policy,
    collector_of,
    completer,
    decoding_of,
    load_policy,
    make_optimizer,
    reset,
    resolve,
    scale,
    task_of,
    versions,
)
from polopt.train.sinks import Fanout, Sink, Summary
from polopt.train.stop import StopRequest, stop_on_signals
from polopt.train.update import TrainState, init_state, make_scorer, make_update
from polopt.types import Info, Trajectories, info_values, merge_info

MAX_SKIPPED = 10  # training steps in a row without one finite gradient
SAMPLES_SHOWN = 4


def train(
    config: TrainConfig,
    *,
    algorithm: Algorithm | Callable[..., Algorithm],
    policy: Policy | None = None,
    task: Task | None = None,
    sinks: Sequence[Sink] = (),
) -> Summary:
    """Train a policy and leave a run folder behind.

    Args:
      config: of the run; what it leaves open the method decides.
      algorithm: the method, or its factory, which is then scaled to the run (`setup.scale`).
      policy, task: instead of those that `config` names; give the same ones to resume the run.
      sinks: where events go besides the run folder.

    Raises:
      PoloptError: anything that cannot be done as asked, in one line, before time is spent on it.
    """
    alg = scale(algorithm, config)
    config = resolve(config, alg)
    parallel = choose(config.parallel, config.devices)
    policy = policy or load_policy(config.model)
    _check_columns(alg)
    with contextlib.ExitStack() as held:
        task = task or held.enter_context(task_of(config))
        record = held.enter_context(open_record(config))
        stop = held.enter_context(stop_on_signals())
        run = Run(config, alg, policy, parallel, task, record, Fanout([record, *sinks]))
        return run.go(stop)


def _check_columns(alg: Algorithm) -> None:
    made = {"logp_old", "logp_sampler", "log_keep", "logp_ref", "value"}
    made |= {"greedy_return"} if alg.sampling.companion == "greedy" else set()
    missing = sorted(set(needs(alg)) - made)
    if missing:
        raise PoloptError(
            f"{alg.name or 'the algorithm'} needs the column {missing[0]!r}, which "
            "this loop cannot make: score it yourself and call polopt.prepare"
        )


@dataclasses.dataclass
class Progress:
    """What moves from step to step."""

    state: TrainState
    cursor: Cursor
    step: int = 0  # training steps done: rollouts with their update
    saved: int = -1  # step of the newest checkpoint
    barren: int = 0  # steps in a row that were skipped whole
    first: Mapping[str, float] | None = None
    last: Mapping[str, float] | None = None


class Run:
    """One run: compiled functions, and the order in which they are called."""

    def __init__(
        self,
        config: TrainConfig,
        alg: Algorithm,
        policy: Policy,
        parallel: Parallel,
        task: Task,
        record: Record,
        sink: Fanout,
    ) -> None:
        """Compile nothing yet; see `train`. `config` is resolved."""
        assert config.prompts is not None
        assert config.group_size is not None
        self.prompts, self.group_size = config.prompts, config.group_size
        self.config, self.alg, self.policy, self.parallel = config, alg, policy, parallel
        self.task, self.record, self.sink = task, record, sink
        self.started = time.perf_counter()
        self.modules: dict[str, Any] = {"policy": policy.model}
        if "value" in (*wants(alg), *needs(alg)):
            self.modules["critic"] = ValueModel(policy.model.config, policy.model.compute_dtype)
        steps = config.steps * alg.update.epochs * alg.update.minibatches
        self.optimizer, self.schedule = make_optimizer(config, steps)
        groups = -(-self.prompts // alg.update.minibatches)
        self.micro, self.width = _split(
            groups * self.group_size, config.micro_batch, parallel.devices
        )
        update = make_update(
            alg, self.modules, self.optimizer, micro_batch=self.micro, axis=parallel.axis
        )
        self.update = parallel.step(update)
        self.scorers = {
            name: parallel.rows(make_scorer(modules, want, micro_batch=self.micro), dealt=1)
            for name, (modules, want) in self._scoring().items()
        }
        self.prepare = jax.jit(functools.partial(prepare, alg))
        self.reweigh = jax.jit(functools.partial(reweigh, alg))
        key = jax.random.key(config.seed)
        self.sample_key, self.eval_key, self.piece_key = (
            jax.random.fold_in(key, i) for i in range(3)
        )
        self.collector = collector_of(
            policy, task, alg.sampling, config.max_new_tokens, config.temperature
        )
        self.sampler = self._sampler(decoding_of(config))
        self.greedy = self._sampler(Decoding(greedy=True))

    # ------------------------------------------------------------ the order of things

    def go(self, stop: StopRequest) -> Summary:
        """Run to the last step or to the next safe point after a stop request."""
        config, now = self.config, self._resume()
        self.sink.start(
            config,
            {
                **versions(),
                "devices": self.parallel.devices,
                "resumed_from": now.step,
                "loss": repr(self.alg.trajectory),
            },
        )
        if now.saved < 0:
            now.first = now.last = self._evaluate(now)
            self._save(now)
        while now.step < config.steps and not stop:
            self._step(now)
            due = config.eval_every and now.step % config.eval_every == 0
            if due or now.step == config.steps:
                now.last = self._evaluate(now)
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
            checkpoint=self._path(now.step),
            stopped=stop.signal,
        )
        self.sink.finish(summary)
        return summary

    def _step(self, now: Progress) -> None:
        start = time.perf_counter()
        rollout = self._rollout(now)
        sampled = time.perf_counter()
        trajectories = self._score(now, rollout.trajectories)
        scored = time.perf_counter()
        info = self._update(now, trajectories)
        end = time.perf_counter()
        now.step, now.cursor = now.step + 1, rollout.cursor
        metrics = {
            **rollout_metrics(rollout.trajectories),
            **info,
            "update/learning_rate": self._learning_rate(now),
            "time/sample": rollout.seconds["sample"],
            "time/reward": rollout.seconds["reward"],
            "time/score": scored - sampled,
            "time/update": end - scored,
            "time/step": end - start,
        }
        metrics["time/tokens_per_second"] = metrics["rollout/tokens"] / metrics["time/step"]
        if self.alg.sampling.refill:
            metrics["groups/refills"] = rollout.rounds - 1
        self.sink.step(now.step, metrics)
        shown = list(range(0, len(rollout.examples), self.group_size))[:SAMPLES_SHOWN]
        self.sink.samples(now.step, views(rollout, shown))

    # ------------------------------------------------------------ rollout and evaluation

    def _sampler(self, decoding: Decoding) -> Callable:
        complete = completer(self.policy, decoding, self.config.max_new_tokens)
        compiled = self.parallel.rows(complete, dealt=3)

        def sample(params: Any, key: Any, prompts: Any, lengths: Any, ids: Any) -> Any:
            P = len(prompts)
            room = round_up(P, self.parallel.devices)
            padded = [
                np.pad(x, ((0, room - P),) + ((0, 0),) * (x.ndim - 1))
                for x in (prompts, lengths, ids)
            ]
            out = compiled(params, key, *padded)
            return jax.tree.map(lambda x: x[: P * ids.shape[1]], out)

        return sample

    def _rollout(self, now: Progress) -> Rollout:
        params = now.state.params["policy"]
        sample = functools.partial(self.sampler, params, self.sample_key)
        greedy = None
        if self.alg.sampling.companion == "greedy":
            greedy = functools.partial(self.greedy, params, self.sample_key)
        return self.collector.collect(sample, greedy, self.prompts, now.cursor)

    def _evaluate(self, now: Progress) -> Mapping[str, float] | None:
        if not self.task.held_out:
            return None
        start = time.perf_counter()
        sample = functools.partial(self.sampler, now.state.params["policy"], self.eval_key)
        metrics, shown = evaluation(self.collector, sample, self.task.held_out, SAMPLES_SHOWN)
        metrics["time/eval"] = time.perf_counter() - start
        self.sink.evaluation(now.step, metrics)
        self.sink.samples(now.step, shown)
        return metrics

    # ------------------------------------------------------------ scoring and update

    def _scoring(self) -> dict[str, tuple[dict[str, Any], tuple[str, ...]]]:
        """What must be scored once per rollout: {source: (modules, wanted columns)}."""
        needed = set(needs(self.alg))
        early = {
            name
            for _, piece in pieces(self.alg)
            for name in piece.needs
            if piece.card.side == "reward" or piece.hooks.before
        }
        # Inside the loss of a single step, logp_old is the current log-probability.
        old = "logp_old" in (early if single_step(self.alg) else needed)
        own = ("logp",) * old + ("value",) * ("value" in needed)
        out: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {}
        if own:
            out["own"] = (self.modules, own)
        if "logp_ref" in needed:
            out["reference"] = ({"policy": self.policy.model}, ("logp",))
        return out

    def _score(self, now: Progress, trajectories: Trajectories) -> Trajectories:
        """Add the columns that the pieces need."""
        N = len(trajectories.length)
        rows = pad_rows(np.arange(N), round_up(N, self.micro * self.parallel.devices), N)
        columns = dict(trajectories.columns)
        if "own" in self.scorers:
            out = self.scorers["own"](now.state.params, trajectories, rows)
            names = {"logp": "logp_old", "value": "value"}
            columns.update({names[name]: x[:N] for name, x in out.items()})
        if "reference" in self.scorers:
            previous = self.alg.update.reference == "previous"
            reference = {"policy": now.state.params["policy"]} if previous else self.reference
            out = self.scorers["reference"](reference, trajectories, rows)
            columns["logp_ref"] = out["logp"][:N]
        columns = jax.tree.map(np.asarray, columns)
        return dataclasses.replace(trajectories, columns=columns)

    def _update(self, now: Progress, trajectories: Trajectories) -> dict[str, float]:
        """All optimiser steps of a batch; `now.state` moves."""
        alg, before = self.alg, int(self.parallel.single(now.state.skipped))
        if alg.update.reset_optimizer:
            fresh = self.optimizer.init(self.parallel.single(now.state.params))
            fresh = reset(now.state.opt_state, self.parallel.replicate(fresh))
            now.state = dataclasses.replace(now.state, opt_state=fresh)
        prepared, infos = None, []
        for epoch in range(alg.update.epochs):
            seed = (self.config.seed, now.step, epoch)
            step_of, steps = assign_steps(trajectories.group, alg.update.minibatches, seed)
            if prepared is None:
                prepared = self._prepare(now, trajectories, step_of)
            else:
                prepared = self.reweigh(prepared, step_of)
            for rows in steps:
                padded = pad_rows(rows, self.width, len(step_of))
                now.state, info = self.update(now.state, trajectories, prepared, padded)
                infos.append(info)
        after = int(self.parallel.single(now.state.skipped))
        steps_taken = alg.update.epochs * alg.update.minibatches
        now.barren = now.barren + 1 if after - before == steps_taken else 0
        if now.barren == MAX_SKIPPED:
            raise PoloptError(
                f"{MAX_SKIPPED} steps in a row had no finite gradient, so the parameters did not "
                f"move: stopped in step {now.step + 1}; checkpoints are in "
                f"{self.record.checkpoints}"
            )
        return {**_metrics(infos), "update/skipped": after}

    def _prepare(self, now: Progress, trajectories: Trajectories, step_of: np.ndarray) -> Any:
        memory = self.parallel.single(now.state.memory)
        key = jax.random.fold_in(self.piece_key, now.step)
        step = None if single_step(self.alg) else step_of
        prepared, memory = self.prepare(trajectories, state=memory, key=key, step_of=step)
        if any(memory.values()):
            now.state = dataclasses.replace(now.state, memory=self.parallel.replicate(memory))
        return prepared

    def _learning_rate(self, now: Progress) -> float:
        """Of the last optimiser step that moved the parameters: the schedule counts only those."""
        moved = int(self.parallel.single(now.state.step - now.state.skipped))
        return float(np.asarray(self.schedule(max(moved - 1, 0))))

    # ------------------------------------------------------------ checkpoints

    def _start(self) -> TrainState:
        params = {"policy": self.policy.params}
        if "critic" in self.modules:
            key = jax.random.fold_in(jax.random.key(self.config.seed), 3)
            params["critic"] = self.modules["critic"].init(key, self.policy.params)
        memory = init(self.alg, prompts=self.task.size or 0)
        return init_state(params, self.optimizer, memory)

    def _resume(self) -> Progress:
        start = self._start()
        self.reference = self.parallel.replicate({"policy": self.policy.params})
        found = checkpoint.restore(self.record.checkpoints, start) if self.record.resumed else None
        if self.record.resumed:
            self.record.resume_at(found[0] if found else -1)
        if found is None:
            return Progress(self.parallel.replicate(start), Cursor())
        step, state, counters = found
        # Copied: the state is donated, and JAX may not own memory that NumPy allocated.
        state = self.parallel.replicate(jax.tree.map(jax.numpy.array, state))
        cursor = Cursor(**counters.pop("cursor"))
        return Progress(state=state, cursor=cursor, step=step, saved=step, **counters)

    def _save(self, now: Progress) -> None:
        state = jax.device_get(self.parallel.single(now.state))
        counters = {
            "cursor": dataclasses.asdict(now.cursor),
            "barren": now.barren,
            "first": now.first,
            "last": now.last,
        }
        checkpoint.save(self.record.checkpoints, now.step, state, counters)
        now.saved = now.step

    def _path(self, step: int) -> Path:
        return checkpoint.path_of(self.record.checkpoints, step)


def _split(rows: int, micro: int | None, devices: int) -> tuple[int, int]:
    """(rows per micro-batch, rows per optimiser step), padded so that everything divides."""
    per_device = -(-rows // devices)
    micro = min(micro or per_device, per_device)
    return micro, round_up(per_device, micro) * devices


def _metrics(steps: list[Info]) -> dict[str, float]:
    """Flat metrics of a batch's optimiser steps; what pieces report goes under `method/`."""
    # Later optimiser steps move the policy: only the first one speaks of the sampler.
    first = {name: entry for name, entry in steps[0].items() if name.startswith("rollout/")}
    merged = {**functools.reduce(merge_info, steps), **first}
    values = {name: float(x) for name, x in jax.device_get(info_values(merged)).items()}
    return {name if name in SCHEMA else f"method/{name}": x for name, x in values.items()}
