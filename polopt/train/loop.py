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
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from polopt.algorithm import Algorithm, init, single_step
from polopt.compose import prepare, reweigh
from polopt.memory import give_back
from polopt.models.kernels import describe
from polopt.models.lora import LoraModel, check_applied, join
from polopt.processes import ALONE, Processes, present
from polopt.rollout.pool import new_pool
from polopt.rollout.recall import no_responses, remember
from polopt.rollout.shares import Shares
from polopt.tasks import Task
from polopt.train import checkpoint
from polopt.train.config import TrainConfig
from polopt.train.evaluate import views
from polopt.train.handover import Handover
from polopt.train.metrics import of_rollout, of_updates
from polopt.train.micro_batches import MicroBatches, in_layouts
from polopt.train.models import blend, first_params, parts, roles, together
from polopt.train.parallel import Parallel, forms
from polopt.train.policy import Policy, adapted, attending, instructed, load_policy
from polopt.train.record import Record
from polopt.train.rollouts import Rollouts
from polopt.train.rows import assign_steps
from polopt.train.scoring import Scoring
from polopt.train.served import serve
from polopt.train.setup import (
    decoding_of,
    make_optimizer,
    packs,
    pool_of,
    reset,
    resolve,
    run_collector,
    scale,
    task_of,
    teacher_of,
    versions,
)
from polopt.train.shared_record import Seen, shared_record
from polopt.train.sinks import Fanout, Sink, Summary
from polopt.train.state import Progress, due, restore, save
from polopt.train.stop import StopRequest, stop_on_signals
from polopt.train.update import Params, TrainState, init_state, make_update
from polopt.train.writers import make_samplers
from polopt.types import Trajectories

SAMPLES_SHOWN = 4


def train(
    config: TrainConfig,
    *,
    algorithm: Algorithm | Callable[..., Algorithm],
    policy: Policy | None = None,
    teacher: Policy | None = None,
    task: Task | None = None,
    sinks: Sequence[Sink] = (),
) -> Summary:
    """Train a policy and leave a run folder behind.

    Args:
      config: of the run; what it leaves open the method decides.
      algorithm: the method, or its factory, which is then scaled to the run (`setup.scale`).
      policy, teacher, task: instead of those that `config` names; give the same ones to resume
        the run.
      sinks: where events go besides the run folder.

    Raises:
      PoloptError: anything that cannot be done as asked, in one line, before time is spent on it.
    """
    alg = scale(algorithm, config)
    config = resolve(config, alg)
    processes = present()
    asked = config.mesh, config.sample_devices, config.sample_mesh
    parallel, sampling = forms(config.parallel, config.devices, *asked, processes)
    with parallel.loading():
        policy = adapted(policy or load_policy(config.model, config.compute_dtype), config)
        if isinstance(policy.model, LoraModel):
            check_applied(policy.model, policy.params)
        teacher = teacher_of(alg, config, policy, teacher)
    for placed in filter(None, (policy, teacher)):
        for form in dict.fromkeys((parallel, sampling)):
            form.check(placed.model.config, placed.params)
    policy = attending(policy, config.attention, parallel.platform)
    teacher = teacher and attending(teacher, config.attention, parallel.platform)
    with contextlib.ExitStack() as held:
        task = pool_of(task or held.enter_context(task_of(config)), alg, config)
        policy = instructed(policy, config.system, task.instruction)
        config = dataclasses.replace(config, system=policy.tokenizer.system)
        record = held.enter_context(shared_record(config, processes))
        stop = held.enter_context(stop_on_signals())
        sink = Fanout([record, *sinks] if isinstance(record, Record) else [])
        run = Run(config, alg, policy, parallel, task, record, sink, teacher, sampling, processes)
        return run.go(stop)


class Run:
    """One run: compiled functions, and the order in which they are called."""

    def __init__(
        self,
        config: TrainConfig,
        alg: Algorithm,
        policy: Policy,
        parallel: Parallel,
        task: Task,
        record: Record | Seen,
        sink: Fanout,
        teacher: Policy | None = None,
        sampling: Parallel | None = None,
        processes: Processes = ALONE,
    ) -> None:
        """Compile nothing yet; see `train`. `config` is resolved."""
        assert config.prompts is not None
        assert config.group_size is not None
        self.prompts, self.group_size = config.prompts, config.group_size
        self.config, self.alg, self.policy, self.parallel = config, alg, policy, parallel
        self.task, self.record, self.sink, self.processes = task, record, sink, processes
        self.started = time.perf_counter()
        self.roles = roles(alg, policy.model, teacher.model if teacher else None)
        self.teacher, self.given = teacher, {}
        self.start, self.base = parts(policy.model, policy.params)
        steps = config.steps * alg.update.epochs * alg.update.minibatches
        self.optimizer, self.schedule = make_optimizer(config, steps)
        read = self.roles.chosen(self.roles.update)
        how = {"axis": parallel.axis, "shards": parallel.shards, "remat": config.remat}
        self.update = parallel.step(make_update(alg, read, self.optimizer, **how))
        self.in_layouts = in_layouts(read)
        self.blend = jax.jit(functools.partial(blend, alg.update.ema))
        self.prepare = jax.jit(functools.partial(prepare, alg))
        self.reweigh = jax.jit(functools.partial(reweigh, alg))
        self.piece_key = jax.random.fold_in(jax.random.key(config.seed), 2)
        shares = Shares(processes, apart=parallel.processes.count > 1)
        collector = run_collector(config, policy, task, alg.sampling, self.roles.modules, shares)
        packed = packs(config, policy)
        groups = -(-self.prompts // alg.update.minibatches)
        self.micro_batches = MicroBatches(
            rows=groups * self.group_size,
            parts=parallel.parts,
            group_size=self.group_size,
            completion=collector.room,
            packed=packed,
            most_rows=config.micro_batch,
            most_tokens=config.micro_tokens,
        )
        self.scoring = Scoring(self.roles, policy, parallel, self.micro_batches)
        decoding, served = decoding_of(config), None
        if config.server is not None:
            served = serve(config, policy, decoding, collector, parallel)
        sampling = sampling or parallel
        samplers = make_samplers(
            policy,
            self.roles.modules,
            decoding,
            collector,
            sampling,
            slots=config.lanes,
            large=packed,
            served=served,
        )
        handover = Handover(parallel, sampling)
        self.rollouts = Rollouts(
            collector, samplers, handover, prompts=self.prompts, seed=config.seed
        )

    # ------------------------------------------------------------ the order of things

    def go(self, stop: StopRequest) -> Summary:
        """Run to the last step or to the next safe point after a stop request."""
        try:
            return self._go(stop)
        finally:
            self.rollouts.drop()

    def _go(self, stop: StopRequest) -> Summary:
        config, now, model = self.config, self._resume(), self.policy.model
        self.sink.start(
            config,
            {
                **versions(),
                "devices": self.parallel.devices,
                "processes": self.processes.count,
                "attention": describe(model.attention, model.config.head_dim),
                "resumed_from": now.step,
                "loss": repr(self.alg.trajectory),
                "sampler": "here" if config.server is None else str(self.rollouts.samplers.policy),
            },
        )
        if now.saved < 0:
            now.first = now.last = self._evaluate(now)
            self._save(now)
        while now.step < config.steps and not self._stopped(stop):
            self._step(now)
            if due(config.eval_every, now.step) or now.step == config.steps:
                now.last = self._evaluate(now)
            if due(config.checkpoint_every, now.step):
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
            stopped=self._stopped(stop),
        )
        self.sink.finish(summary)
        return summary

    def _stopped(self, stop: StopRequest) -> str | None:
        """The signal that asked any of the processes to stop: they stop after the same step."""
        return next(filter(None, self.processes.gather(stop.signal)), None)

    def _step(self, now: Progress) -> None:
        start = time.perf_counter()
        given = self._given(now)
        everyone = together(given, now.state.params)
        rollout = self.rollouts.take(everyone, now.step, now.cursor, now.pool)
        pool = rollout.pool
        if self.roles.drift:
            pool = remember(pool, rollout.trajectories)
        if self._draws_ahead(now.step + 1):
            self.rollouts.begin(everyone, now.step, rollout.cursor, pool)
        give_back()
        sampled = time.perf_counter()
        trajectories = self.scoring.columns(everyone, rollout, now.pool, now.rooms)
        routed = self.scoring.routed(everyone["policy"], trajectories)
        scored = time.perf_counter()
        info = self._update(now, given, trajectories)
        give_back()
        end = time.perf_counter()
        now.step, now.cursor, now.pool = now.step + 1, rollout.cursor, pool
        if now.average:
            now.average = self.blend(now.average, now.state.params["policy"])
        metrics = {
            **of_rollout(rollout, now.step - 1, refills=self.alg.sampling.refill is not None),
            **routed,
            **info,
            "update/learning_rate": self._learning_rate(now),
            "time/wait": sampled - start,
            "time/score": scored - sampled,
            "time/update": end - scored,
            "time/step": end - start,
        }
        metrics["time/tokens_per_second"] = metrics["rollout/tokens"] / metrics["time/step"]
        self.sink.step(now.step, metrics)
        shown = list(range(0, len(rollout.examples), self.group_size))[:SAMPLES_SHOWN]
        self.sink.samples(now.step, views(rollout, shown))

    def _draws_ahead(self, step: int) -> bool:
        """Whether the rollout of a step is drawn before the step before it has moved the weights.

        Not across a checkpoint, which then is all that a resumed run needs.
        """
        config = self.config
        kept = due(config.checkpoint_every, step) or due(config.eval_every, step)
        return bool(config.sample_devices) and step < config.steps and not kept

    def _evaluate(self, now: Progress) -> Mapping[str, float] | None:
        if not self.task.held_out:
            return None
        policy = together(self.given, now.state.params)["policy"]
        metrics, shown = self.rollouts.evaluate(policy, now.step, self.task.held_out, SAMPLES_SHOWN)
        self.sink.evaluation(now.step, metrics)
        self.sink.samples(now.step, shown)
        return metrics

    # ------------------------------------------------------------ scoring and update

    def _fixed(self) -> Params:
        """Parameters that never move, of models that the method reads."""
        fixed = {}
        if self.teacher:
            fixed["teacher"] = self.teacher.model.read_only(self.teacher.params)
        if self.alg.update.reference == "frozen":
            fixed["reference"] = self._read_only(self.start)
        return {name: params for name, params in fixed.items() if name in self.roles.given}

    def _read_only(self, start: Params) -> Params:
        """A policy's parameters, or its adapters, to compare with: adapters stay as they are."""
        return self.policy.model.read_only(start) if self.base is None else start

    def _bases(self, base: Any) -> Params:
        """The one base, for every model that has adapters over it."""
        over = [name for name in self.roles.trained if name in ("policy", "prm")]
        return {} if base is None else dict.fromkeys(over, base)

    def _given(self, now: Progress) -> Params:
        """Parameters that no optimiser step of this batch moves."""
        if "reference" not in self.roles.given:
            return self.given
        reference = now.average or self.given.get("reference")
        if not reference:  # A copy: the state is donated to the first optimiser step.
            reference = jax.tree.map(jnp.copy, self._read_only(now.state.params["policy"]))
        if base := self.given.get("policy"):
            reference = join(reference, base)
        return {**self.given, "reference": reference}

    def _update(self, now: Progress, given: Params, trajectories: Trajectories) -> dict[str, float]:
        """All optimiser steps of a batch; `now.state` moves."""
        alg, before = self.alg, int(self.parallel.single(now.state.skipped))
        if alg.update.reset_optimizer:
            fresh = self.optimizer.init(self.parallel.single(now.state.params))
            fresh = reset(now.state.opt_state, self.parallel.place(fresh))
            now.state = dataclasses.replace(now.state, opt_state=fresh)
        prepared, infos = None, []
        rooms = now.rooms if self.in_layouts else None
        for epoch in range(alg.update.epochs):
            seed = (self.config.seed, now.step, epoch)
            step_of, steps = assign_steps(trajectories.group, alg.update.minibatches, seed)
            if prepared is None:
                prepared = self._prepare(now, trajectories, step_of)
            else:
                prepared = self.reweigh(prepared, step_of)
            for rows in steps:
                cut = self.micro_batches.cut(trajectories, rows, rooms=rooms)
                now.state, info = self.update(now.state, given, trajectories, prepared, *cut)
                infos.append(info)
        jax.block_until_ready(now.state)  # before processes talk: nothing is under way then
        after = int(self.parallel.single(now.state.skipped))
        steps_taken = alg.update.epochs * alg.update.minibatches
        skipped = after - before == steps_taken
        now.count_skipped(skipped, step=now.step + 1, checkpoints=self.record.checkpoints)
        return {**of_updates(infos), "update/skipped": after}

    def _prepare(self, now: Progress, trajectories: Trajectories, step_of: np.ndarray) -> Any:
        memory = self.parallel.single(now.state.memory)
        key = jax.random.fold_in(self.piece_key, now.step)
        step = None if single_step(self.alg) else step_of
        prepared, memory = self.prepare(trajectories, state=memory, key=key, step_of=step)
        if any(memory.values()):
            now.state = dataclasses.replace(now.state, memory=self.parallel.place(memory))
        return prepared

    def _learning_rate(self, now: Progress) -> float:
        """Of the last optimiser step that moved the parameters: the schedule counts only those."""
        moved = int(self.parallel.single(now.state.step - now.state.skipped))
        return float(np.asarray(self.schedule(max(moved - 1, 0))))

    # ------------------------------------------------------------ checkpoints

    def _start(self) -> TrainState:
        return self._started(self.policy.params)

    def _started(self, policy_params: Any) -> TrainState:
        params = first_params(self.roles, policy_params, self.config.seed)
        memory = init(self.alg, prompts=self.task.size or 0)
        return init_state(params, self.optimizer, memory)

    def _first(self, state: TrainState | None = None) -> Progress:
        """Before the first step; nothing is placed, but for a state that is."""
        ema = "reference" in self.roles.given and self.alg.update.reference == "ema"
        prompts = self.task.size or 0
        pool = new_pool(self.alg.sampling, prompts)
        if self.roles.drift:
            pool |= no_responses(prompts, self.rollouts.collector.room)
        return Progress(state or self._start(), pool=pool, average=self.start if ema else {})

    @functools.cached_property
    def _shapes(self) -> Progress:
        """What a checkpoint is compared with."""
        first = self._first(jax.eval_shape(self._started, self.policy.params))
        state, average = self.parallel.abstract((first.state, first.average))
        return dataclasses.replace(first, state=state, average=average)

    def _resume(self) -> Progress:
        like, folder = self._shapes, self.record.checkpoints
        base = self.base and self.policy.model.read_only(self.base)
        base, fixed = self.parallel.place((base, self._fixed()))
        self.given = {**fixed, **self._bases(base)}
        found = restore(folder, like, self.processes) if self.record.resumed else None
        if self.record.resumed:
            self.record.resume_at(found.step if found else -1)
        if found:
            return found.spread(self.parallel)
        first = self._first(self.parallel.build(self._started, self.policy.params))
        return dataclasses.replace(first, average=self.parallel.place(first.average))

    def _save(self, now: Progress) -> None:
        save(self.record.checkpoints, now, self.parallel, self.processes)
