"""The learned log-partition of a prompt: one number from a policy's reading of it (FlowRL)."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from polopt.models.config import DecoderConfig


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class PartitionModel:
    """`log Z(prompt)`: one linear head on the policy's state after the last prompt token.

    The state is a constant to it: learning a partition does not move the policy.

    >>> head = PartitionModel(DecoderConfig(vocab_size=8, hidden_size=4, num_layers=1,
    ...     num_heads=1, num_kv_heads=1, head_dim=4, mlp_size=4, max_length=8))
    >>> head.log_partition(head.init(jax.random.key(0)), jnp.ones((2, 4))).tolist()
    [0.0, 0.0]
    """

    config: DecoderConfig

    def init(self, key: Array) -> dict[str, Any]:
        """Weights whose log-partitions are all zero: {"kernel" f32[D], "bias" f32[]}."""
        return {"kernel": jnp.zeros(self.config.hidden_size), "bias": jnp.zeros(())}

    def log_partition(self, params: Any, state: Array) -> Array:
        """f32[N] of `state [N,D]`, the policy's after each prompt."""
        state = jax.lax.stop_gradient(state).astype(jnp.float32)
        return state @ params["kernel"].astype(jnp.float32) + params["bias"].astype(jnp.float32)
