"""Attention in one softmax over two kinds of keys: those of a shared prompt, and a row's own.

Letters: `P` prompts, `N` rows (`N = P * G`: G neighbours continue one prompt), `T` query positions,
`S` prompt positions, `C` own key positions, `H` query heads, `K` key heads, `R = H / K`, `d` head
size, `Q = T * R` queries of a key head. Scores and softmax are float32.

The backward pass is our own rule: of the softmax it keeps one number per query, not the weights,
which are as large as all scores; it makes those again (2205.14135, section 3.1). Hence one
derivative exists, in reverse mode.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

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
    P = N if prompt is None else prompt[0].shape[0]
    # With a prompt's rows side by side, products with its keys need no copies of anything as large
    # as scores. A single query reads a cache, which is larger and stays as it lies.
    order = "pgk" if T == 1 else "pkg"
    # Heads that share a key head become more queries of it: one matrix product for all.
    q = (q * rule.scale).reshape(P, N // P, T, K, H // K, d)
    q = q.transpose(_axes("pgtkrd", f"{order}trd")).reshape(*_sizes(order, P, N // P, K), -1, d)

    def own_part(x: Array) -> Array:
        return x.reshape(P, N // P, *x.shape[1:]).transpose(_axes("pgksd", f"{order}sd"))

    def seen(visible: Array) -> Array:
        apart = visible.reshape(-(-visible.shape[0] * P // N), -1, *visible.shape[1:])
        return jnp.expand_dims(apart, (order.index("k"), 4))

    parts = [_Keys(order, own_part(own[0]), own_part(own[1]), seen(visible))]
    if prompt is not None:
        assert prompt_visible is not None
        parts.append(_Keys("pk", *prompt, seen(prompt_visible)))
    out = _attend(rule, order, q, parts)
    out = out.reshape(*_sizes(order, P, N // P, K), T, H // K, d)
    return out.transpose(_axes(f"{order}trd", "pgtkrd")).reshape(N, T, H, d)


def _axes(given: str, wanted: str) -> list[int]:
    return [given.index(letter) for letter in wanted]


def _sizes(order: str, P: int, G: int, K: int) -> list[int]:
    return [{"p": P, "g": G, "k": K}[letter] for letter in order]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Keys:
    """One kind of keys, with their values; `axes` names those before [S,d]."""

    axes: str = dataclasses.field(metadata={"static": True})
    keys: Array  # [axes,S,d]
    values: Array
    visible: Array  # bool, broadcasts to [order,T,R,S]

    def scores(self, rule: Rule, order: str, q: Array) -> Array:
        """f32[order,Q,S] of `q [order,Q,d]`, under the cap."""
        scores = _product(f"{order}qd,{self.axes}sd->{order}qs", q, self.keys)
        return scores if rule.softcap is None else rule.softcap * jnp.tanh(scores / rule.softcap)

    def masked(self, scores: Array, fill: float) -> Array:
        """The same, with `fill` where nothing is visible."""
        *rest, Q, S = scores.shape
        T = self.visible.shape[-3]
        apart = scores.reshape(*rest, T, Q // T, S)
        return jnp.where(self.visible, apart, fill).reshape(scores.shape)


def _product(equation: str, a: Array, b: Array) -> Array:
    return jnp.einsum(equation, a.astype(b.dtype), b, preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(rule: Rule, order: str, q: Array, parts: list[_Keys]) -> Array:
    """[order,Q,d] of `q [order,Q,d]`, which is scaled."""
    return _forward(rule, order, q, parts)[0]


def _forward(rule: Rule, order: str, q: Array, parts: list[_Keys]) -> tuple[Array, Any]:
    scores = [part.masked(part.scores(rule, order, q), -jnp.inf) for part in parts]
    top = functools.reduce(jnp.maximum, [s.max(-1, keepdims=True) for s in scores])
    weights = [jnp.exp(s - top) for s in scores]
    total = functools.reduce(jnp.add, [w.sum(-1, keepdims=True) for w in weights])
    sums = [
        _product(f"{order}qs,{part.axes}sd->{order}qd", w, part.values)
        for w, part in zip(weights, parts, strict=True)
    ]
    out = (functools.reduce(jnp.add, sums) / total).astype(q.dtype)
    return out, (q, parts, out, top + jnp.log(total))


def _backward(rule: Rule, order: str, saved: Any, cotangent: Array) -> tuple[Array, list[_Keys]]:
    q, parts, out, log_total = saved
    cotangent = cotangent.astype(jnp.float32)
    mean = jnp.sum(cotangent * out.astype(jnp.float32), -1, keepdims=True)
    dq, changes = jnp.zeros(q.shape), []
    for part in parts:
        capped = part.scores(rule, order, q)
        weights = part.masked(jnp.exp(capped - log_total), 0.0)
        dvalues = _product(f"{order}qs,{order}qd->{part.axes}sd", weights, cotangent)
        dweights = _product(f"{order}qd,{part.axes}sd->{order}qs", cotangent, part.values)
        dscores = weights * (dweights - mean)
        if rule.softcap is not None:
            dscores = dscores * (1 - (capped / rule.softcap) ** 2)
        dq = dq + _product(f"{order}qs,{part.axes}sd->{order}qd", dscores, part.keys)
        dkeys = _product(f"{order}qs,{order}qd->{part.axes}sd", dscores, q)
        changes.append(
            dataclasses.replace(
                part,
                keys=dkeys.astype(part.keys.dtype),
                values=dvalues.astype(part.values.dtype),
                visible=None,  # how a rule tells JAX that there is no gradient
            )
        )
    return dq.astype(q.dtype), changes


_attend.defvjp(_forward, _backward)
