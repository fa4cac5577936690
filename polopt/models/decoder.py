"""The decoder: one flax NNX module whose shape is a `DecoderConfig`.

The forward pass is written once, in `Decoder.__call__`; training, scoring, prefill and cached
decoding differ only in the `attend` function that they hand to it (polopt.models.language_model).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from polopt.models.attention import rotary
from polopt.models.config import DecoderConfig

# attend(q [B,T,H,d], k [B,T,K,d], v [B,T,K,d], memory) -> (out [B,T,H,d], new memory)
Attend = Callable[[Array, Array, Array, Any], tuple[Array, Any]]
_INIT_STD = 0.02


class Attention(nnx.Module):
    """Projections around an attention that the caller chooses."""

    def __init__(self, config: DecoderConfig, dtype: Any, rngs: nnx.Rngs):
        size, heads, kv = config.hidden_size, config.num_heads, config.num_kv_heads
        linear = functools.partial(
            nnx.Linear, dtype=dtype, kernel_init=nnx.initializers.normal(_INIT_STD), rngs=rngs
        )
        self.q = linear(size, heads * config.head_dim, use_bias=config.qkv_bias)
        self.k = linear(size, kv * config.head_dim, use_bias=config.qkv_bias)
        self.v = linear(size, kv * config.head_dim, use_bias=config.qkv_bias)
        self.out = linear(
            heads * config.head_dim, size, use_bias=False, kernel_init=_residual_init(config)
        )
        if config.qk_norm:
            self.q_norm = _norm(config.head_dim, config, rngs)
            self.k_norm = _norm(config.head_dim, config, rngs)
        self.config = config

    def __call__(
        self, x: Array, positions: Array, attend: Attend, memory: Any
    ) -> tuple[Array, Any]:
        """[B,T,D] -> [B,T,D], and what `attend` remembered."""
        B, T, _ = x.shape
        heads = (B, T, -1, self.config.head_dim)
        q, k, v = self.q(x).reshape(heads), self.k(x).reshape(heads), self.v(x).reshape(heads)
        if self.config.qk_norm:
            q, k = self.q_norm(q).astype(q.dtype), self.k_norm(k).astype(k.dtype)
        q = rotary(q, positions, self.config.rope_theta)
        k = rotary(k, positions, self.config.rope_theta)
        out, memory = attend(q, k, v, memory)
        return self.out(out.reshape(B, T, -1)), memory


class Mlp(nnx.Module):
    """SwiGLU (arXiv 2002.05202): `down(silu(gate(x)) * up(x))`."""

    def __init__(self, config: DecoderConfig, dtype: Any, rngs: nnx.Rngs):
        linear = functools.partial(nnx.Linear, use_bias=False, dtype=dtype, rngs=rngs)
        init = nnx.initializers.normal(_INIT_STD)
        self.gate = linear(config.hidden_size, config.mlp_size, kernel_init=init)
        self.up = linear(config.hidden_size, config.mlp_size, kernel_init=init)
        self.down = linear(config.mlp_size, config.hidden_size, kernel_init=_residual_init(config))

    def __call__(self, x: Array) -> Array:
        """[B,T,D] -> [B,T,D]."""
        return self.down(nnx.silu(self.gate(x)) * self.up(x))


class Block(nnx.Module):
    """One pre-norm layer."""

    def __init__(self, config: DecoderConfig, dtype: Any, rngs: nnx.Rngs):
        self.attention_norm = _norm(config.hidden_size, config, rngs)
        self.attention = Attention(config, dtype, rngs)
        self.mlp_norm = _norm(config.hidden_size, config, rngs)
        self.mlp = Mlp(config, dtype, rngs)

    def __call__(
        self, x: Array, positions: Array, attend: Attend, memory: Any
    ) -> tuple[Array, Any]:
        """[B,T,D] -> [B,T,D], and what `attend` remembered."""
        change, memory = self.attention(self.attention_norm(x), positions, attend, memory)
        x = x + change
        return x + self.mlp(self.mlp_norm(x)), memory


class Decoder(nnx.Module):
    """Embedding, blocks and final norm; layers are separate leaves, unrolled."""

    def __init__(self, config: DecoderConfig, dtype: Any, rngs: nnx.Rngs):
        embed = functools.partial(
            nnx.Embed,
            config.vocab_size,
            config.hidden_size,
            dtype=dtype,
            embedding_init=nnx.initializers.normal(_INIT_STD),
            rngs=rngs,
        )
        self.embed = embed()
        self.layers = nnx.Dict(
            {str(i): Block(config, dtype, rngs) for i in range(config.num_layers)}
        )
        self.norm = _norm(config.hidden_size, config, rngs)
        if not config.tie_embeddings:
            self.unembed = embed()
        self.config = config

    def __call__(
        self,
        tokens: Array,
        positions: Array,
        attend: Attend,
        memory: Sequence[Any] | None = None,
        *,
        remat: bool = False,
    ) -> tuple[Array, tuple[Any, ...]]:
        """Final-normed hidden states f32[B,T,D], and what each layer's `attend` remembered."""
        x = self.embed(tokens)
        remembered = []
        for i in range(self.config.num_layers):
            block = self.layers[str(i)]
            graph, weights = nnx.split(block)
            layer = functools.partial(_run_block, graph, attend)
            if remat:
                layer = jax.checkpoint(layer)
            x, kept = layer(weights, x, positions, None if memory is None else memory[i])
            remembered.append(kept)
        return self.norm(x).astype(jnp.float32), tuple(remembered)


def _run_block(graph: Any, attend: Attend, weights: Any, x: Array, positions: Array, memory: Any):
    return nnx.merge(graph, weights)(x, positions, attend, memory)


def _norm(size: int, config: DecoderConfig, rngs: nnx.Rngs) -> nnx.RMSNorm:
    return nnx.RMSNorm(size, epsilon=config.norm_eps, dtype=jnp.float32, rngs=rngs)


def _residual_init(config: DecoderConfig) -> Any:
    """Smaller by the square root of the number of residual sums, so that depth keeps the scale."""
    return nnx.initializers.normal(_INIT_STD * (2 * config.num_layers) ** -0.5)
