"""Attention in one softmax over two kinds of keys: those of a shared prompt, and a row's own.

Letters: `P` prompts, `N` rows (`N = P * G`: G neighbours continue one prompt), `T` query positions,
`S` prompt positions, `C` own key positions, `H` query heads, `K` key heads, `R = H / K`, `d` head
size. Scores and softmax are float32.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import Array

from polopt.models.config import DecoderConfig

KeyValue = tuple[Array, Array]  # keys and values of one layer, each [rows,K,positions,d]


@dataclasses.dataclass(frozen=True)
class Rule:
    """How a layer scores what it sees."""

    scale: float
    softcap: float | None  # 2408.00118, section 2: cap * tanh(score / cap)
    window: int | None  # how many positions a query sees, its own included

    @staticmethod
    def of(config: DecoderConfig, layer: int) -> Rule:
        """That of one layer of a decoder."""
        return Rule(config.score_scale, config.attention_softcap, config.window_of(layer))


def near(distance: Array, rule: Rule) -> Array:
    """bool: a key that lies `distance` positions back is not in the future, nor beyond the window.

    >>> near(jnp.arange(-1, 4), Rule(scale=1.0, softcap=None, window=2)).tolist()
    [False, True, True, False, False]
    """
    seen = distance >= 0
    return seen if rule.window is None else seen & (distance < rule.window)


def attention(
    q: Array,
    own: KeyValue,
    visible: Array,
    rule: Rule,
    prompt: KeyValue | None = None,
    prompt_visible: Array | None = None,
) -> Array:
    """Attention of every query to its row's own keys, and to those of the prompt it continues.

    The prompt's keys and values exist once per prompt, however many rows continue it.

    Args:
      q: [N,T,H,d], rotated.
      own: each [N,K,C,d], keys rotated.
      visible: bool[N or 1,T,C], for every real query at least one.
      rule: of the layer.
      prompt: each [P,K,S,d].
      prompt_visible: bool[N,T or 1,S].

    Returns:
      [N,T,H,d].
    """
    N, T, H, d = q.shape
    K = own[0].shape[1]
    # Heads that share a key head become more queries of it: one matrix product for all.
    q = (q * rule.scale).reshape(N, T, K, H // K, d).transpose(0, 2, 1, 3, 4)
    scores = [_scores(q, own[0], visible, rule)]
    values = [own[1]]
    if prompt is not None:
        assert prompt_visible is not None
        scores.append(_scores(q, prompt[0], prompt_visible, rule))
        values.append(prompt[1])
    # A constant to the gradient: it cancels.
    top = jax.lax.stop_gradient(jnp.stack([s.max(-1) for s in scores]).max(0))[..., None]
    weights = [jnp.exp(s - top) for s in scores]
    total = functools.reduce(jnp.add, [w.sum(-1, keepdims=True) for w in weights])
    parts = [_weigh(w, v) for w, v in zip(weights, values, strict=True)]
    out = functools.reduce(jnp.add, parts) / total
    return out.transpose(0, 2, 1, 3, 4).reshape(N, T, H, d).astype(q.dtype)


def _scores(q: Array, keys: Array, visible: Array, rule: Rule) -> Array:
    """f32[N,K,T,R,S] of `q [N,K,T,R,d]` and `keys [P,K,S,d]`; -inf where not visible."""
    N, K, T, R, d = q.shape
    P, _, S, _ = keys.shape
    grouped = q.reshape(P, N // P, K, T * R, d)
    scores = jnp.einsum("pgkqd,pksd->pgkqs", grouped, keys, preferred_element_type=jnp.float32)
    scores = scores.reshape(N, K, T, R, S)
    if rule.softcap is not None:
        scores = rule.softcap * jnp.tanh(scores / rule.softcap)
    return jnp.where(visible[:, None, :, None, :], scores, -jnp.inf)


def _weigh(weights: Array, values: Array) -> Array:
    """f32[N,K,T,R,d] of `weights [N,K,T,R,S]` and `values [P,K,S,d]`."""
    N, K, T, R, S = weights.shape
    P, _, _, d = values.shape
    grouped = weights.reshape(P, N // P, K, T * R, S).astype(values.dtype)
    out = jnp.einsum("pgkqs,pksd->pgkqd", grouped, values, preferred_element_type=jnp.float32)
    return out.reshape(N, K, T, R, d)
