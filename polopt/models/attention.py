"""Rotary positions and the two shapes of attention: causal, and after a shared prompt.

Letters: `B` rows, `T` query positions, `S` key positions, `H` query heads, `K` key/value heads,
`R = H / K` queries per key head, `d` head size. Softmax is computed in float32.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

KeyValue = tuple[Array, Array]  # keys and values of one layer, each [B,K,S,d]


def rotary(x: Array, positions: Array, theta: float) -> Array:
    """Turn `x [B,T,heads,d]` by its `positions i32[B,T]` (RoPE, arXiv 2104.09864, eq. 34).

    The pair (j, j + d/2) turns by the angle `position * theta**(-2j/d)`: the half-split layout of
    Llama checkpoints, not the interleaved one of the paper.
    """
    half = x.shape[-1] // 2
    frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions[:, :, None, None].astype(jnp.float32) * frequency[None, None, None, :]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    a, b = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)


def causal(q: Array, k: Array, v: Array) -> Array:
    """Attention of every position to itself and all before it in its row.

    Padding on the right needs no mask: no real position comes after it.

    Args:
      q: [B,T,H,d], rotated.
      k: [B,T,K,d], rotated.
      v: [B,T,K,d].

    Returns:
      [B,T,H,d].
    """
    B, T, H, d = q.shape
    K = k.shape[2]
    q = q.reshape(B, T, K, H // K, d)
    scores = jnp.einsum("btkrd,bskd->bkrts", q, k, preferred_element_type=jnp.float32)
    before = jnp.tril(jnp.ones((T, T), bool))
    scores = jnp.where(before[None, None, None], scores * d**-0.5, -jnp.inf)
    weights = jax.nn.softmax(scores, -1).astype(v.dtype)
    return jnp.einsum("bkrts,bskd->btkrd", weights, v).reshape(B, T, H, d)


def after_prompt(q: Array, prompt: KeyValue, own: KeyValue, seen: Array, visible: Array) -> Array:
    """Attention of a group's rows to the prompt they share and to their own tokens.

    The prompt's keys and values exist once per prompt; one softmax spans both parts.

    Args:
      q: [N,T,H,d] with N = P * G, row n = p * G + g.
      prompt: keys and values, each [P,K,S,d].
      own: keys and values of the rows' own tokens, each [N,K,C,d].
      seen: bool[P,S], the real tokens of each prompt.
      visible: bool[T,C], the own tokens that each query position may see, at least one.

    Returns:
      [N,T,H,d].
    """
    N, T, H, d = q.shape
    P, K, S, _ = prompt[0].shape
    G, R = N // P, H // K
    q = (q * d**-0.5).reshape(N, T, K, R, d)
    shared = q.reshape(P, G, T, K, R, d)
    to_prompt = jnp.einsum(
        "pgtkrd,pksd->pgktrs", shared, prompt[0], preferred_element_type=jnp.float32
    )
    to_prompt = jnp.where(seen[:, None, None, None, None, :], to_prompt, -jnp.inf)
    to_prompt = to_prompt.reshape(N, K, T, R, S)
    to_own = jnp.einsum("ntkrd,nkcd->nktrc", q, own[0], preferred_element_type=jnp.float32)
    to_own = jnp.where(visible[None, None, :, None, :], to_own, -jnp.inf)
    top = jnp.maximum(to_prompt.max(-1), to_own.max(-1))[..., None]
    to_prompt, to_own = jnp.exp(to_prompt - top), jnp.exp(to_own - top)
    total = to_prompt.sum(-1) + to_own.sum(-1)
    shared = to_prompt.reshape(P, G, K, T, R, S).astype(q.dtype)
    out = jnp.einsum(
        "pgktrs,pksd->pgktrd", shared, prompt[1], preferred_element_type=jnp.float32
    ).reshape(N, K, T, R, d)
    out = out + jnp.einsum(
        "nktrc,nkcd->nktrd", to_own.astype(q.dtype), own[1], preferred_element_type=jnp.float32
    )
    out = out / total[..., None]
    return out.swapaxes(1, 2).reshape(N, T, H, d).astype(q.dtype)
