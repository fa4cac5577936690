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

from polopt.models.attention import ATTENDED, Rule
from polopt.models.axes import DATA, FSDP, SEQUENCE, TENSOR
from polopt.models.config import DecoderConfig
from polopt.models.experts import ACTIVATIONS, Routing, SparseMlp
from polopt.models.rotary import Rotation, rotate, rotations
from polopt.models.spread import ROWS, ambient, constrain

# attend(q [B,T,H,d], k [B,T,K,d], v [B,T,K,d], rule, memory) -> (out [B,T,H,d], new memory)
Attend = Callable[[Array, Array, Array, Rule, Any], tuple[Array, Any]]
_INIT_STD = 0.02
_KEPT = jax.checkpoint_policies.save_only_these_names(ATTENDED)


class Norm(nnx.Module):
    """RMSNorm (1910.07467, eq. 4), in float32; `offset + scale` multiplies what is normalised."""

    def __init__(self, size: int, config: DecoderConfig):
        self.scale = nnx.Param(jnp.full(size, 1.0 - config.norm_offset, jnp.float32))
        self.eps, self.offset = config.norm_eps, config.norm_offset

    def __call__(self, x: Array) -> Array:
        """[..., size] -> f32[..., size]."""
        scale = self.offset + self.scale[...].astype(jnp.float32)
        return _normalise(x, jnp.expand_dims(scale, tuple(range(x.ndim - 1))), self.eps)


class Attention(nnx.Module):
    """Projections around an attention that the caller chooses."""

    def __init__(self, config: DecoderConfig, dtype: Any, rngs: nnx.Rngs):
        size, heads, kv = config.hidden_size, config.num_heads, config.num_kv_heads
        linear = functools.partial(
            nnx.Linear,
            dtype=dtype,
            kernel_init=nnx.initializers.normal(_INIT_STD),
            dot_general=_flat_product,
            rngs=rngs,
        )
        self.q = linear(size, heads * config.head_dim, use_bias=config.qkv_bias)
        self.k = linear(size, kv * config.head_dim, use_bias=config.qkv_bias)
        self.v = linear(size, kv * config.head_dim, use_bias=config.qkv_bias)
        self.out = linear(
            heads * config.head_dim,
            size,
            use_bias=config.out_bias,
            kernel_init=_residual_init(config),
        )
        if config.qk_norm:
            self.q_norm = Norm(config.head_dim, config)
            self.k_norm = Norm(config.head_dim, config)
        self.config = config

    def __call__(
        self, x: Array, rotation: Rotation, rule: Rule, attend: Attend, memory: Any
    ) -> tuple[Array, Any]:
        """[B,T,D] -> [B,T,D], and what `attend` remembered."""
        B, T, _ = x.shape
        heads = (B, T, -1, self.config.head_dim)
        q, k, v = self.q(x).reshape(heads), self.k(x).reshape(heads), self.v(x).reshape(heads)
        if self.config.qk_norm:
            q, k = self.q_norm(q).astype(q.dtype), self.k_norm(k).astype(k.dtype)
        out, memory = attend(rotate(q, rotation), rotate(k, rotation), v, rule, memory)
        return self.out(out.reshape(B, T, -1)), memory


class Mlp(nnx.Module):
    """A gated MLP (2002.05202): `down(activation(gate(x)) * up(x))`."""

    def __init__(self, config: DecoderConfig, dtype: Any, rngs: nnx.Rngs):
        linear = functools.partial(
            nnx.Linear, use_bias=config.mlp_bias, dtype=dtype, dot_general=_flat_product, rngs=rngs
        )
        init = nnx.initializers.normal(_INIT_STD)
        self.gate = linear(config.hidden_size, config.mlp_size, kernel_init=init)
        self.up = linear(config.hidden_size, config.mlp_size, kernel_init=init)
        self.down = linear(config.mlp_size, config.hidden_size, kernel_init=_residual_init(config))
        self.activation = config.activation

    def __call__(self, x: Array) -> Array:
        """[B,T,D] -> [B,T,D]."""
        return self.down(_gate(self.activation, self.gate(x), self.up(x)))


class Block(nnx.Module):
    """One layer: norms before attention and MLP, and after them where the family has those."""

    def __init__(self, config: DecoderConfig, layer: int, dtype: Any, rngs: nnx.Rngs):
        self.attention_norm = Norm(config.hidden_size, config)
        self.attention = Attention(config, dtype, rngs)
        self.mlp_norm = Norm(config.hidden_size, config)
        if config.routed(layer):
            self.experts = SparseMlp(config, dtype, rngs)
        else:
            self.mlp = Mlp(config, dtype, rngs)
        if config.post_norms:
            self.attention_post_norm = Norm(config.hidden_size, config)
            self.mlp_post_norm = Norm(config.hidden_size, config)
        self.rule, self.dtype = Rule.of(config, layer), dtype
        self.post_norms, self.routed = config.post_norms, config.routed(layer)

    def __call__(
        self, x: Array, rotation: Rotation, attend: Attend, memory: Any
    ) -> tuple[Array, Any, Routing | None]:
        """[B,T,D] -> [B,T,D], what `attend` remembered, and where tokens were sent."""
        change, memory = self.attention(self.attention_norm(x), rotation, self.rule, attend, memory)
        if self.post_norms:
            change = self.attention_post_norm(change).astype(x.dtype)
        x = x + change
        routing = None
        if self.routed:
            change, routing = self.experts(self.mlp_norm(x))
        else:
            change = self.mlp(self.mlp_norm(x))
        if self.post_norms:
            change = self.mlp_post_norm(change).astype(x.dtype)
        return x + change, memory, routing


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
            {str(i): Block(config, i, dtype, rngs) for i in range(config.num_layers)}
        )
        self.norm = Norm(config.hidden_size, config)
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
    ) -> tuple[Array, tuple[Any, ...], tuple[Routing, ...]]:
        """Final-normed states f32[B,T,D], what each layer's `attend` remembered, and the routing.

        Args:
          tokens, positions: i32[B,T].
          attend: the attention.
          memory: what it is handed, per layer.
          remat: recompute each layer in the backward pass.
        """
        table = self.embed.embedding[...].astype(self.embed.dtype)
        # "fsdp" cuts what is taken, and deals rows only then: so the table is never gathered.
        tokens = constrain(tokens, DATA, SEQUENCE)
        x = jnp.take(constrain(table, TENSOR, FSDP), tokens, axis=0)
        x = constrain(constrain(x, DATA, SEQUENCE, FSDP), ROWS, SEQUENCE)
        x = x * jnp.asarray(self.config.embed_scale, x.dtype)
        remembered, routings = [], []
        for i, rotation in enumerate(rotations(self.config, positions)):
            layer = _recomputed(self.layers[str(i)]) if remat else self.layers[str(i)]
            given = None if memory is None else memory[i]
            x, kept, routing = layer(x, rotation, attend, given)
            x = constrain(x, ROWS, SEQUENCE)
            remembered.append(kept)
            routings += [] if routing is None else [routing]
        return self.norm(x), tuple(remembered), tuple(routings)


def _recomputed(layer: Block) -> Callable[..., tuple[Array, Any, Routing | None]]:
    """The layer, whose insides the backward pass computes again."""
    graph, weights = nnx.split(layer)

    def run(
        x: Array, rotation: Rotation, attend: Attend, memory: Any
    ) -> tuple[Array, Any, Routing | None]:
        def merged(weights: Any, x: Array, rotation: Rotation, memory: Any) -> Any:
            return nnx.merge(graph, weights)(x, rotation, attend, memory)

        own, x = _finished_together(weights, x)
        return jax.checkpoint(merged, policy=_KEPT)(own, x, rotation, memory)

    return run


@jax.custom_vjp
def _finished_together(weights: Any, x: Array) -> tuple[Any, Array]:
    """The same; in the backward pass no gradient goes on before all have been computed.

    Or a compiler may put off the weights' gradients until the last layer's, and keep what was
    computed again of every layer.
    """
    return weights, x


_finished_together.defvjp(
    lambda weights, x: ((weights, x), None),
    lambda _, gradients: jax.lax.optimization_barrier(gradients),
)


def _flat_product(x: Array, kernel: Array, dimensions: Any, **how: Any) -> Array:
    """`x [..., D] @ kernel [D,E]`, over one axis of rows.

    The gradient of the kernel sums over rows: over two axes of them, XLA on the CPU transposes a
    copy of the states first. Positions that are cut over devices keep an axis: without one they
    would be gathered.
    """
    assert dimensions == (((x.ndim - 1,), (0,)), ((), ()))
    if SEQUENCE in ambient():
        return jax.lax.dot_general(x, kernel, dimensions, **how)
    rows = x.reshape(-1, x.shape[-1])
    out = jax.lax.dot_general(rows, kernel, (((1,), (0,)), ((), ())), **how)
    return out.reshape(*x.shape[:-1], -1)


# What follows from what is kept anyway is made again in the backward pass: these are cheap, and
# writing all that lies between to memory is not.


@functools.partial(jax.checkpoint, static_argnums=2)
def _normalise(x: Array, scale: Array, eps: float) -> Array:
    """f32[..., size]."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + eps) * scale


@functools.partial(jax.checkpoint, static_argnums=0)
def _gate(activation: str, gate: Array, up: Array) -> Array:
    return ACTIVATIONS[activation](gate) * up


def _residual_init(config: DecoderConfig) -> Any:
    """Smaller by the square root of the number of residual sums, so that depth keeps the scale."""
    return nnx.initializers.normal(_INIT_STD * (2 * config.num_layers) ** -0.5)
