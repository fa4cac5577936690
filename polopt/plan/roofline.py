"""The least time that a step can take on a slice: an estimate, from what must be done and moved.

A program takes at least as long as its products, its reading of memory and its sending, each at the
full rate of the chip. What is counted of memory is weights, optimiser state and caches;
activations, padding of arrays, latencies and the host come on top.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import jax.numpy as jnp

from polopt.plan.compile import Program
from polopt.plan.flops import Flops
from polopt.plan.job import Job
from polopt.plan.memory import Held, Sizes, cache_bytes, numbers_of
from polopt.plan.slices import Slice
from polopt.train.parallel.mesh import row_parts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Time:
    """Seconds of one part of a training step, on every chip at once.

    Attributes:
      compute, memory: at the chip's rates.
      network: None where no program says what is sent.
    """

    compute: float
    memory: float
    network: float | None

    @property
    def least(self) -> float:
        """That of the slowest."""
        return max(self.compute, self.memory, self.network or 0.0)

    @property
    def bound(self) -> str:
        """By what: "compute", "memory" or "network"."""
        times = {"compute": self.compute, "memory": self.memory, "network": self.network or 0.0}
        return max(times, key=times.__getitem__)


def estimate(
    job: Job,
    where: Slice,
    sizes: Sizes,
    flops: Flops,
    resident: Held,
    micro_batch: int,
    programs: Sequence[Program],
) -> dict[str, Time]:
    """Least seconds of every part of a training step; {} where nothing is known of the chip.

    Args:
      job: what is computed.
      where: on which chips.
      sizes: of their mesh.
      flops: of all chips.
      resident: what each holds.
      micro_batch: rows of a chip per pass.
      programs: what was compiled.
    """
    chip = where.chip
    if chip is None:
        return {}
    moved = _moved(job, sizes, resident, micro_batch)
    sent = _sent(job, sizes, programs) if where.links else {}
    return {
        part: Time(
            compute=getattr(flops, part) / where.chips / chip.flops,
            memory=moved[part] / chip.bandwidth,
            network=sent[part] / (chip.link * where.links) if part in sent else None,
        )
        for part in ("prefill", "decode", "scoring", "update")
        if getattr(flops, part)
    }


def _moved(job: Job, sizes: Sizes, resident: Held, micro_batch: int) -> Mapping[str, float]:
    """Bytes that a chip reads and writes, by part."""
    parts = row_parts(sizes)
    width = jnp.dtype(job.policy.compute_dtype).itemsize
    weights = numbers_of(job.params) * width / sizes["tensor"]
    # Half of the cache is written, when a row has half of its tokens.
    prompts = cache_bytes(job, 0, job.prompts, sizes)
    cache = prompts + cache_bytes(job, job.rows, 0, sizes) / 2
    passes = 3 if job.config.remat else 2
    _, rows = job.split(micro_batch, parts)
    step = passes * weights * (rows / parts / micro_batch)
    state = 2 * (resident.parameters + resident.optimiser)  # read and written
    return {
        "prefill": weights + prompts,
        "decode": job.completion * (job.rounds(parts) * weights + cache),
        "scoring": weights * job.rows / parts / micro_batch,
        "update": job.optimiser_steps * (step + state),
    }


def _sent(job: Job, sizes: Sizes, programs: Sequence[Program]) -> Mapping[str, float]:
    """Bytes that a chip sends, by part, of what was compiled."""
    rounds = job.rounds(row_parts(sizes))
    times = {"prefill": rounds, "decode": rounds * job.completion, "update": job.optimiser_steps}
    return {
        program.name: times.get(program.name, 1) * sum(sent.bytes for sent in program.collectives)
        for program in programs
        if program.bytes is not None
    }
