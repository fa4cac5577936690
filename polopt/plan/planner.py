"""A plan: the programs of a training step compiled for a slice, and all that is counted of them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

from polopt.algorithm import Algorithm
from polopt.plan import steps
from polopt.plan.activations import activation_bytes
from polopt.plan.advice import Advice, advise, largest, micro_batches, update_bytes
from polopt.plan.compile import Program, compile_program, devices_of, options_of
from polopt.plan.config import PlanConfig
from polopt.plan.flops import Flops, count
from polopt.plan.job import Job, make_job
from polopt.plan.memory import Held, Sizes, beside, held, sampler_bytes
from polopt.plan.roofline import Time, estimate
from polopt.plan.slices import Slice, read_slice
from polopt.train.parallel import Pmap, Sharded, make_mesh
from polopt.train.parallel.mesh import fill_sizes, read_sizes, row_parts

Watch = Callable[[str], AbstractContextManager[Any]]
"""`with watch(what):` is around everything that takes long, and is told what it is."""


@dataclasses.dataclass(frozen=True)
class Ask:
    """The compiler, and who is told that it is asked.

    Attributes:
      options: for the compiler.
      watch: see `Watch`.
    """

    options: Mapping[str, Any]
    watch: Watch

    def __call__(self, name: str, lower: Callable[[], Any], more: str = "") -> Program:
        """Compile a step of that name; `more` says which of several."""
        with self.watch(f"compiling the {name}{more}"):
            return compile_program(name, lower, self.options)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """A micro-batch, in rows per device and pass, and whether an update with it fits."""

    micro_batch: int
    fits: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What is known of a training step before it is run.

    Attributes:
      config: as it was asked for.
      job: what would be computed.
      where: on which devices.
      sizes: of their mesh.
      micro_batch: rows of a device per pass.
      held: bytes of a device from step to step.
      activations: bytes of a device that layers keep for the backward pass, counted from shapes.
      estimated: bytes that an update needs besides, by the estimate of `polopt.plan.advice`.
      cache: bytes of the sampler's keys and values on a device.
      programs: what was compiled; () if the compiler was left out.
      tried: micro-batches, in the order in which they were tried.
      flops: of a training step.
      times: least seconds of its parts; {} where nothing is known of the chip.
      advice: settings that would fit, if these do not; the first ones were compiled if `confirmed`.
      confirmed: advice whose update the compiler accepted.
    """

    config: PlanConfig
    job: Job
    where: Slice
    sizes: Sizes
    micro_batch: int
    held: Held
    activations: int
    estimated: int
    cache: int
    programs: tuple[Program, ...]
    tried: tuple[Found, ...]
    flops: Flops
    times: dict[str, Time]
    advice: tuple[Advice, ...]
    confirmed: Advice | None

    @property
    def fits(self) -> bool:
        """Whether every program was made and has room; by the estimate, if none was compiled."""
        if not self.programs:
            return self.held.total + max(self.estimated, self.cache) <= self.where.memory
        return all(self.has_room(program) for program in self.programs)

    def needed(self, program: Program) -> int | None:
        """Bytes on a device while a program runs: its own, and what lies there beside it."""
        if program.bytes is None:
            return None
        return program.bytes.peak + beside(self.job, self.sizes, program.name)

    def has_room(self, program: Program) -> bool:
        """Whether a program was made, and fits beside what lies there."""
        needed = self.needed(program)
        return needed is not None and needed <= self.where.memory

    @property
    def largest(self) -> int | None:
        """The largest micro-batch that is known to fit."""
        return max((found.micro_batch for found in self.tried if found.fits), default=None)


def make_plan(
    config: PlanConfig,
    method: Algorithm | Callable[..., Algorithm],
    watch: Watch = contextlib.nullcontext,
) -> Plan:
    """Plan a training step.

    Args:
      config: of the plan.
      method: that `config.algorithm` names.
      watch: see `Watch`.

    Raises:
      PoloptError: an unknown slice or model, settings that make no run, a mesh that does not cut
        the model, or a compiler that is not installed or fails for another reason than memory.
    """
    where = read_slice(config.slice)
    sizes = _sizes(config, where.chips)
    make = functools.partial(make_job, method=method)
    job = make(config)
    resident, parts = held(job, sizes), row_parts(sizes)
    micro_batch, _ = job.split(config.micro_batch, parts)
    programs: tuple[Program, ...] = ()
    tried: tuple[Found, ...] = ()
    ask = Ask(options_of(where, config.effort), watch)
    if config.compile:
        form = _form(config, sizes, where)
        form.check(job.policy.config, job.params)
        made = _programs(job, form, micro_batch, ask)
        programs = tuple(itertools.islice(made, 1) if config.update_only else made)
        room = where.memory - beside(job, sizes, "update")
        tried = (_tried(micro_batch, programs[0], room),)
        if config.search:
            guess = largest(job, sizes, where.memory)
            tried += tuple(_search(job, form, room, tried[0], guess, config.search, ask))
    flops = count(job, micro_batch, parts)
    plan = Plan(
        config=config,
        job=job,
        where=where,
        sizes=sizes,
        micro_batch=micro_batch,
        held=resident,
        activations=activation_bytes(job, sizes, micro_batch),
        estimated=update_bytes(job, sizes, micro_batch),
        cache=sampler_bytes(job, sizes),
        programs=programs,
        tried=tried,
        flops=flops,
        times=estimate(job, where, sizes, flops, resident, micro_batch, programs),
        advice=(),
        confirmed=None,
    )
    return plan if plan.fits else _advised(plan, make, ask)


def _programs(job: Job, form: Sharded | Pmap, micro_batch: int, ask: Ask) -> Iterator[Program]:
    """The programs of a training step, in the order in which they matter."""
    yield ask("update", lambda: steps.lower_update(job, form, micro_batch))
    if job.roles.columns:
        yield ask("scoring", lambda: steps.lower_scoring(job, form, micro_batch))
    if isinstance(form, Pmap):
        yield ask("sampling", lambda: steps.lower_sampling(job, form))
        return
    prefill = ask("prefill", lambda: steps.lower_prefill(job, form))
    yield prefill
    if prefill.bytes is not None:
        lanes = steps.lanes_after(prefill.lowered, prefill.compiled)
        yield ask("decode", lambda: steps.lower_decode(job, form, lanes))


def _search(
    job: Job,
    form: Sharded | Pmap,
    room: int,
    first: Found,
    guess: int,
    most: int,
    ask: Ask,
) -> Iterator[Found]:
    """Other micro-batches, at most so many, until the largest that fits is known.

    Args:
      job, form: what is computed, and where.
      room: bytes on a device that an update may take.
      first: what is known already.
      guess: the largest that fits by an estimate; 0 if none does.
      most: programs to compile.
      ask: the compiler.
    """
    known = sorted({*micro_batches(job, form.parts), first.micro_batch})
    at = known.index(first.micro_batch)
    fitting, failing = (at, len(known)) if first.fits else (-1, at)
    place = sum(size <= guess for size in known) - 1
    for _ in range(most):
        if failing - fitting <= 1:
            return
        place = min(max(place, fitting + 1), failing - 1)
        micro_batch = known[place]
        lower = functools.partial(steps.lower_update, job, form, micro_batch)
        update = ask("update", lower, f" with a micro-batch of {micro_batch}")
        found = _tried(micro_batch, update, room)
        fitting, failing = (place, failing) if found.fits else (fitting, place)
        place += 1 if found.fits else -1
        yield found


def _tried(micro_batch: int, update: Program, room: int) -> Found:
    """Whether an update was made, and has room."""
    fits = update.bytes is not None and update.bytes.peak <= room
    return Found(micro_batch=micro_batch, fits=fits)


def _advised(plan: Plan, make: Callable[[PlanConfig], Job], ask: Ask) -> Plan:
    """The plan with settings that would fit; the compiler is asked until it accepts one."""
    where, found = plan.where, []
    confirmed = None
    if plan.tried and not plan.tried[0].fits and plan.largest is not None:  # found by the search
        own = dataclasses.replace(plan.config, micro_batch=plan.largest)
        needed = plan.held.total + update_bytes(plan.job, plan.sizes, plan.largest)
        confirmed = Advice(config=own, bytes=needed)
        found.append(confirmed)
    left = plan.config.search if plan.programs else 0
    for advice in advise(plan.config, make, where.chips, where.memory):
        if confirmed is None and left > 0:
            left -= 1
            confirmed = advice if _accepted(advice.config, make, where, ask) else None
        if all(advice.config != other.config for other in found):
            found.append(advice)
    return dataclasses.replace(plan, advice=tuple(found), confirmed=confirmed)


def _accepted(
    config: PlanConfig, make: Callable[[PlanConfig], Job], where: Slice, ask: Ask
) -> bool:
    """Whether the compiler makes the update of a configuration, and it has room."""
    job, sizes = make(config), _sizes(config, where.chips)
    form = _form(config, sizes, where)
    micro_batch, _ = job.split(config.micro_batch, form.parts)
    lower = functools.partial(steps.lower_update, job, form, micro_batch)
    update = ask("update", lower, f" with {config.flags()}")
    return _tried(micro_batch, update, where.memory - beside(job, sizes, "update")).fits


def _form(config: PlanConfig, sizes: Sizes, where: Slice) -> Sharded | Pmap:
    """How a run of that configuration is spread over the slice."""
    devices = devices_of(where)
    if config.parallel == "pmap":
        return Pmap(len(devices), where=tuple(devices))
    return Sharded(make_mesh(sizes, devices))


def _sizes(config: PlanConfig, devices: int) -> Sizes:
    """Sizes of the mesh, all of them numbers; copies on all devices are those of "data".

    Raises:
      PoloptError: sizes that do not make so many devices.
    """
    asked = ("data=-1",) if config.parallel == "pmap" else config.mesh or ("fsdp=-1",)
    return fill_sizes(read_sizes(asked), devices)
