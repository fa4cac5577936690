"""What layers keep from the forward pass for the backward pass, counted from shapes."""

from __future__ import annotations

import math

import jax.numpy as jnp

from polopt.models.config import DecoderConfig
from polopt.plan.job import Job
from polopt.plan.memory import Sizes


def activation_bytes(job: Job, sizes: Sizes, micro_batch: int) -> int:
    """Bytes on a device that the layers of the policy keep during an update.

    Args:
      job: what is computed.
      sizes: of the mesh.
      micro_batch: rows of a device per pass.
    """
    layer = kept_again(job, sizes) if job.config.remat else kept(job, sizes)
    width = jnp.dtype(job.policy.compute_dtype).itemsize
    layers = job.policy.config.num_layers
    return math.ceil(positions(job, sizes, micro_batch) * layers * layer * width)


def positions(job: Job, sizes: Sizes, micro_batch: int) -> float:
    """That a device computes at once."""
    return job.room(micro_batch).positions / sizes["sequence"]


def kept(job: Job, sizes: Sizes) -> float:
    """Numbers of a layer per position: what goes into its products, and what these give."""
    config = job.policy.config
    heads = (2 * config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    return 4 * config.hidden_size + (heads + 3 * mlp_size(config)) / sizes["tensor"]


def kept_again(job: Job, sizes: Sizes) -> float:
    """The same of a layer that is computed again: its input, and what its attention gave."""
    config = job.policy.config
    return config.hidden_size + config.num_heads * config.head_dim / sizes["tensor"]


def mlp_size(config: DecoderConfig) -> int:
    """Of a layer, all of a token's experts together."""
    if config.experts is None:
        return config.mlp_size
    return max(config.mlp_size, config.experts.size * config.experts.chosen)
