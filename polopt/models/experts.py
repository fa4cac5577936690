"""Routed experts in place of an MLP: each token goes through a few of many (Qwen3-MoE)."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from polopt.models.config import DecoderConfig
from polopt.models.spread import by_tokens

ACTIVATIONS = {"silu": jax.nn.silu, "gelu": functools.partial(jax.nn.gelu, approximate=True)}
_INIT_STD = 0.02


class Routing(NamedTuple):
    """Where a layer sent its tokens."""

    chosen: Array  # i32[B,T,k] experts
    entropy: Array  # f32[B,T] of the router's distribution, in nats


class SparseMlp(nnx.Module):
    """`Σ_e p_e(x) · expert_e(x)` over the chosen experts, without dropping a token.

    The router is softmax over all experts, then the k largest (Qwen3, 2505.09388, section 2); the
    weights of those sum to one where `normalise` says so. Tokens are sorted by expert, and all
    experts are one grouped product (`jax.lax.ragged_dot`).
    """

    def __init__(self, config: DecoderConfig, dtype: Any, rngs: nnx.Rngs):
        assert config.experts is not None
        experts, size = config.experts, config.hidden_size
        normal = nnx.initializers.normal(_INIT_STD)

        def stacked(rows: int, columns: int) -> nnx.Param:
            return nnx.Param(normal(rngs.params(), (experts.count, rows, columns)))

        self.router = nnx.Linear(
            size, experts.count, use_bias=False, dtype=dtype, kernel_init=normal, rngs=rngs
        )
        self.gate = stacked(size, experts.size)
        self.up = stacked(size, experts.size)
        self.down = stacked(experts.size, size)
        self.experts, self.dtype, self.activation = experts, dtype, config.activation

    def __call__(self, x: Array) -> tuple[Array, Routing]:
        """[B,T,D] -> [B,T,D], and where the tokens went."""
        x = x.astype(self.dtype)
        logp = jax.nn.log_softmax(self.router(x).astype(jnp.float32))
        share, chosen = jax.lax.top_k(jnp.exp(logp), self.experts.chosen)
        if self.experts.normalise:
            share = share / share.sum(-1, keepdims=True)
        weights = tuple(w[...].astype(self.dtype) for w in (self.gate, self.up, self.down))
        total = by_tokens(self._mixed, (x, chosen, share), weights)
        entropy = -jnp.sum(jnp.exp(logp) * logp, -1)
        return total, Routing(chosen.astype(jnp.int32), entropy)

    def _mixed(
        self, sent: tuple[Array, Array, Array], weights: tuple[Array, Array, Array]
    ) -> Array:
        """[B,T,D] of `sent = (x [B,T,D], chosen i32[B,T,k], share f32[B,T,k])`."""
        (x, chosen, share), (gate, up, down) = sent, weights
        flat, k = x.reshape(-1, x.shape[-1]), self.experts.chosen
        order = jnp.argsort(chosen.reshape(-1), stable=True)
        counts = jnp.bincount(chosen.reshape(-1), length=self.experts.count)
        grouped = functools.partial(jax.lax.ragged_dot, group_sizes=counts.astype(jnp.int32))
        rows = flat[order // k]
        out = grouped(ACTIVATIONS[self.activation](grouped(rows, gate)) * grouped(rows, up), down)
        out = out * share.reshape(-1)[order][:, None].astype(out.dtype)
        return jnp.zeros_like(flat).at[order // k].add(out).reshape(x.shape)
