"""Settings that would fit where those of a plan do not, by an estimate that needs no compiler.

What lies on a device from step to step is exact. What an update needs besides is estimated: its
largest arrays are counted as if they were alive together, and the rest is left to a margin.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

import jax.numpy as jnp

from polopt.errors import PoloptError
from polopt.models.head import default_chunk
from polopt.models.lora import LoraModel
from polopt.plan.activations import activation_bytes, kept, mlp_size, positions
from polopt.plan.config import PlanConfig
from polopt.plan.job import Job
from polopt.plan.memory import Sizes, bytes_of, held, sampler_bytes
from polopt.train.parallel.mesh import row_parts

MARGIN = 0.92  # of a device's memory: the compiler keeps some, and arrays are padded
RANK = 16  # of the adapters that are proposed
_FLOAT = 4  # bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Advice:
    """Settings, and the bytes that an update is estimated to need on a device."""

    config: PlanConfig
    bytes: int


def update_bytes(job: Job, sizes: Sizes, micro_batch: int) -> int:
    """Bytes on a device that an optimiser step needs besides what the run holds; an estimate.

    Args:
      job: what is computed.
      sizes: of the mesh.
      micro_batch: rows of a device per pass.
    """
    config = job.policy.config
    width = jnp.dtype(job.policy.compute_dtype).itemsize
    room = job.room(micro_batch)
    bins = room.prompts * room.bins
    pairs = max(room.prompts * room.prompt**2, bins * room.bin * (room.prompt + room.bin))
    ways = sizes["tensor"] * sizes["sequence"]
    inside = 2 * width * positions(job, sizes, micro_batch) * kept(job, sizes)
    scores = 3 * _FLOAT * pairs * config.num_heads / ways  # float32, of one layer
    parts = row_parts(sizes)
    _, rows = job.split(micro_batch, parts)
    passes = rows // parts // micro_batch
    return math.ceil(
        activation_bytes(job, sizes, micro_batch)
        + inside  # of the layer whose gradient is computed
        + scores
        + _gradients(job, sizes, passes)
        + _rounded(job, sizes, width)
        + _gathered(job, sizes, width)
        + _head(job, sizes, micro_batch)
        + _embedding(job, sizes, width)
    )


def _gradients(job: Job, sizes: Sizes, passes: int) -> int:
    """Of a micro-batch, and their sum if there are several."""
    return (2 if passes > 1 else 1) * bytes_of(job.state.params, sizes)


def _rounded(job: Job, sizes: Sizes, width: int) -> float:
    """The parameters in a narrower type of computing: once, before the passes."""
    return bytes_of(job.state.params, sizes) * width / _FLOAT if width < _FLOAT else 0.0


def _gathered(job: Job, sizes: Sizes, width: int) -> float:
    """The weights of two layers, whole along "fsdp"."""
    if sizes["fsdp"] == 1:
        return 0.0
    config = job.policy.config
    heads = 2 * config.head_dim * (config.num_heads + config.num_kv_heads)
    layer = config.hidden_size * (heads + 3 * mlp_size(config))
    return 2 * width * layer / sizes["tensor"]


def _head(job: Job, sizes: Sizes, micro_batch: int) -> float:
    """The unembedding and its gradient, a chunk of logits twice, and its states twice."""
    config = job.policy.config
    ways = sizes["tensor"] * sizes["fsdp"]
    blocks = sizes["fsdp"] if config.vocab_size % ways == 0 else 1
    own = config.vocab_size / (sizes["tensor"] * blocks)
    places = blocks * micro_batch * (job.prompt + job.completion)
    chunk = min(default_chunk(config.vocab_size // blocks, config.hidden_size), places)
    tables = 1 if isinstance(job.policy, LoraModel) else 2
    table = own * config.hidden_size * tables
    return _FLOAT * (table + 2 * chunk * (own + config.hidden_size))


def _embedding(job: Job, sizes: Sizes, width: int) -> float:
    """The table in the type of computing, and its gradient."""
    config, tables = job.policy.config, 1 if isinstance(job.policy, LoraModel) else 2
    ways = sizes["tensor"] * sizes["fsdp"]
    return tables * width * config.vocab_size * config.hidden_size / ways


def advise(
    config: PlanConfig, make: Callable[[PlanConfig], Job], chips: int, memory: int
) -> Iterator[Advice]:
    """Settings that fit by the estimate, those first that change least.

    Args:
      config: the settings that do not fit.
      make: the job of a configuration.
      chips: of the slice.
      memory: bytes of each.
    """
    for rank in dict.fromkeys((config.lora_rank, config.lora_rank or RANK)):
        for remat in dict.fromkeys((config.remat, True)):
            tried = dataclasses.replace(config, lora_rank=rank, remat=remat)
            job = make(tried)
            found = _first_mesh(job, chips, memory)
            if found is not None:
                sizes, micro_batch, needed = found
                mesh = tuple(f"{name}={size}" for name, size in sizes.items() if size > 1)
                changed = {"mesh": mesh or ("fsdp=1",), "parallel": "mesh"}
                changed |= {"micro_batch": micro_batch}
                yield Advice(config=dataclasses.replace(tried, **changed), bytes=needed)


def _first_mesh(job: Job, chips: int, memory: int) -> tuple[dict[str, int], int, int] | None:
    """(sizes, micro-batch, bytes) of the mesh that sends least of those that fit."""
    for sizes in _meshes(chips, job.policy.config.num_kv_heads):
        found = _fitting(job, sizes, memory)
        if found is not None:
            return sizes, *found
    return None


def _meshes(chips: int, heads: int) -> Iterator[dict[str, int]]:
    """Along "fsdp", and "tensor" as far as it divides the key heads."""
    for tensor in (1, 2, 4, 8):
        if chips % tensor == 0 and heads % tensor == 0:
            yield {"data": 1, "fsdp": chips // tensor, "tensor": tensor, "sequence": 1}


def largest(job: Job, sizes: Sizes, memory: int) -> int:
    """The largest micro-batch that fits, in rows of a device per pass; 0 if none does.

    Args:
      job: what is computed.
      sizes: of the mesh.
      memory: bytes of a device.
    """
    found = _fitting(job, sizes, memory)
    return found[0] if found else 0


def _fitting(job: Job, sizes: Sizes, memory: int) -> tuple[int, int] | None:
    """(the largest micro-batch that fits, bytes with it)."""
    try:
        resident, cache = held(job, sizes).total, sampler_bytes(job, sizes)
    except PoloptError:  # the mesh does not cut this model
        return None
    for micro_batch in reversed(micro_batches(job, row_parts(sizes))):
        needed = resident + max(update_bytes(job, sizes, micro_batch), cache)
        if needed <= MARGIN * memory:
            return micro_batch, needed
    return None


def micro_batches(job: Job, parts: int) -> list[int]:
    """Sizes of a micro-batch that divide the rows of a device, so that none is padded."""
    most = job.split(None, parts)[0]
    return [size for size in range(1, most + 1) if most % size == 0]
