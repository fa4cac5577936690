"""Bytes on a device by what they are, counted from shapes and from the table of axes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from polopt.models.axes import axes_on, spec_of
from polopt.plan.job import Job
from polopt.train.models import together
from polopt.train.parallel.mesh import row_parts

Sizes = Mapping[str, int]  # of a mesh, by axis


@dataclasses.dataclass(frozen=True, kw_only=True)
class Held:
    """Bytes on each device that lie there from the first step to the last.

    Attributes:
      parameters: that are trained.
      optimiser: its moments and counters, and the memory of pieces.
      frozen: parameters that are read only: a base under adapters, a reference, a teacher.
    """

    parameters: int
    optimiser: int
    frozen: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.parameters + self.optimiser + self.frozen


def held(job: Job, sizes: Sizes) -> Held:
    """What a run holds on each device of a mesh of these sizes.

    Raises:
      PoloptError: a parameter that the mesh cannot cut.
    """
    state = job.state
    others = {"memory": state.memory, "step": state.step, "skipped": state.skipped}
    return Held(
        parameters=bytes_of(state.params, sizes),
        optimiser=bytes_of({"opt_state": state.opt_state, **others}, sizes),
        frozen=bytes_of(job.given, sizes),
    )


def beside(job: Job, sizes: Sizes, step: str) -> int:
    """Bytes that lie on a device while a program runs, and that it does not take.

    Args:
      job: what is computed.
      sizes: of the mesh.
      step: "update", "scoring", "prefill", "decode", or "sampling" for both of these.
    """
    roles, all_of_it = job.roles, held(job, sizes)
    read = {"update": (*roles.trained, *roles.update), "scoring": roles.scoring()}
    names = dict.fromkeys(read.get(step, ("policy",)))
    everyone = together(job.given, job.state.params)
    taken = bytes_of({name: everyone[name] for name in names}, sizes)
    return all_of_it.total - taken - (all_of_it.optimiser if step == "update" else 0)


def bytes_of(tree: Any, sizes: Sizes) -> int:
    """Bytes on a device of arrays that are cut as their names say; the same one counts once."""
    total, seen = 0, set[int]()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if id(leaf) in seen:  # a base that several models have in common
            continue
        seen.add(id(leaf))
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        ways = math.prod(
            sizes[axis] for entry in spec_of(name, leaf.shape, sizes) for axis in axes_on(entry)
        )
        total += math.ceil(leaf.size // ways * _bits(leaf.dtype) / 8)
    return total


def numbers_of(tree: Any) -> int:
    """How many numbers arrays have."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _bits(dtype: Any) -> int:
    """Of a number; several of four bits share a byte."""
    if jnp.issubdtype(dtype, jnp.integer):
        return jnp.iinfo(dtype).bits
    return 8 * jnp.dtype(dtype).itemsize


def sampler_bytes(job: Job, sizes: Sizes) -> int:
    """Bytes on a device of all keys and values while a rollout is sampled."""
    slots = job.slots(row_parts(sizes))
    return cache_bytes(job, slots.prompts * slots.lanes, slots.prompts, sizes)


def cache_bytes(job: Job, rows: int, prompts: int, sizes: Sizes) -> int:
    """Bytes on a device of keys and values: of prompts, and of what rows write.

    Args:
      job: what is computed.
      rows, prompts: of all devices.
      sizes: of the mesh.
    """
    config = job.policy.config
    positions = prompts * job.prompt + rows * job.completion
    width = 2 * config.num_kv_heads * config.head_dim * jnp.dtype(job.policy.compute_dtype).itemsize
    ways = row_parts(sizes) * _heads(config.num_kv_heads, sizes)
    return positions * width * config.num_layers // ways


def _heads(heads: int, sizes: Sizes) -> int:
    """Over how many devices keys are cut: `polopt.models.spread.head_axes`."""
    both = sizes["tensor"] * sizes["sequence"]
    if heads % both == 0:
        return both
    return sizes["tensor"] if heads % sizes["tensor"] == 0 else 1
