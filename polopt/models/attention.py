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
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from polopt.models.config import DecoderConfig
from polopt.models.spread import by_heads

ATTENDED = "attended"  # name of what is kept of an attention where its layer is computed again
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
    K = own[0].shape[1]
    P = q.shape[0] if prompt is None else prompt[0].shape[0]
    local = functools.partial(on_device, rule)
    return by_heads(local, q, own, visible, prompt, prompt_visible, rows=P, heads=K)


def on_device(
    rule: Rule,
    q: Array,
    own: KeyValue,
    visible: Array,
    prompt: KeyValue | None,
    prompt_visible: Array | None,
) -> Array:
    """The same of the rows and heads of one device."""
    N, T, H, d = q.shape
    K = own[0].shape[1]
    P = N if prompt is None else prompt[0].shape[0]
    G = N // P
    # Heads that share a key head become more queries of it: one matrix product for all.
    q = (q * rule.scale).reshape(P, G, T, K, -1, d)
    # A single query reads a cache in the shape that it has: reshaped, XLA copies all of it in every
    # step. More of them lie so that a prompt's rows are side by side: what is as large as scores
    # then needs no copies to meet its keys.
    if T == 1:
        lead, back = (N, K), (0, 1, 3, 2, 4, 5)
        keys, values = own
        q = q.transpose(0, 1, 3, 2, 4, 5).reshape(N, K, -1, d)
        seen = visible[:, None, :, None]
    else:
        lead, back = (P, K, G), (0, 2, 3, 1, 4, 5)
        q = q.transpose(0, 3, 1, 2, 4, 5).reshape(P * K, G, -1, d)
        keys, values = (
            x.reshape(P, G, K, -1, d).swapaxes(1, 2).reshape(P * K, G, -1, d) for x in own
        )
        seen = _by_prompt(visible, N, P)
    parts = [_Keys(lead, None, keys, values, seen)]
    if prompt is not None:
        assert prompt_visible is not None
        seen = prompt_visible[:, None, :, None] if T == 1 else _by_prompt(prompt_visible, N, P)
        keys, values = (x.reshape(P * K, -1, d) for x in prompt)
        parts.append(_Keys(lead, (P, G, K), keys, values, seen))
    out = cast(Array, _attend(rule, q, parts))
    out = out.reshape(P, *((G, K) if T == 1 else (K, G)), T, H // K, d)
    return out.transpose(back).reshape(N, T, H, d)


def _by_prompt(visible: Array, N: int, P: int) -> Array:
    """bool[P or 1,1,G or 1,T,1,S] of `visible [N or 1,T,S]`."""
    rows = 1 if visible.shape[0] == 1 and N > 1 else P
    return visible.reshape(rows, 1, -1, visible.shape[1], 1, visible.shape[2])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Keys:
    """One kind of keys, with their values.

    Queries are [A,B,Q,d]: `lead` is (N, K) = (A, B), or (P, K, G) = (A, B) with A = P * K.
    """

    lead: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    shared: tuple[int, int, int] | None = dataclasses.field(metadata={"static": True})  # (P,G,K)
    keys: Array  # [A,B,S,d]; [P*K,S,d] if shared
    values: Array
    visible: Array  # bool, broadcasts to [*lead,T,R,S]

    def scores(self, rule: Rule, q: Array) -> Array:
        """f32[A,B,Q,S] of `q [A,B,Q,d]`, under the cap."""
        scores = self.times("...qd,...sd->...qs", q, self.keys)
        return scores if rule.softcap is None else rule.softcap * jnp.tanh(scores / rule.softcap)

    def masked(self, scores: Array, fill: float) -> Array:
        """The same, with `fill` where nothing is visible."""
        apart = scores.reshape(*self.lead, self.visible.shape[-3], -1, scores.shape[-1])
        return jnp.where(self.visible, apart, fill).reshape(scores.shape)

    def times(self, equation: str, x: Array, y: Array) -> Array:
        """f32[A,B,Q,b] of `x [A,B,Q,a]` and keys or values."""
        out = _product(equation, self._gathered(x), y)
        if self.shared and len(self.lead) == 2:
            P, G, K = self.shared
            out = out.reshape(P, K, G, -1, out.shape[-1]).swapaxes(1, 2)
        return out.reshape(*x.shape[:3], out.shape[-1])

    def summed(self, x: Array, y: Array) -> Array:
        """f32[A,B,a,b], or f32[P*K,a,b]: of `x [A,B,Q,a]` and `y [A,B,Q,b]`, over the queries."""
        return _product("...qa,...qb->...ab", self._gathered(x), self._gathered(y))

    def _gathered(self, x: Array) -> Array:
        """`x [A,B,Q,a]`, or [P*K,G*Q,a]: the queries that share keys."""
        if self.shared is None:
            return x
        P, G, K = self.shared
        if len(self.lead) == 2:
            x = x.reshape(P, G, K, *x.shape[2:]).swapaxes(1, 2)
        return x.reshape(P * K, -1, x.shape[-1])


def _product(equation: str, a: Array, b: Array) -> Array:
    return jnp.einsum(equation, a.astype(b.dtype), b, preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(rule: Rule, q: Array, parts: list[_Keys]) -> Array:
    """[A,B,Q,d] of `q [A,B,Q,d]`, which is scaled."""
    return _forward(rule, q, parts)[0]


def _forward(rule: Rule, q: Array, parts: list[_Keys]) -> tuple[Array, Any]:
    scores = [part.masked(part.scores(rule, q), -jnp.inf) for part in parts]
    top = functools.reduce(jnp.maximum, [s.max(-1, keepdims=True) for s in scores])
    weights = [jnp.exp(s - top) for s in scores]
    total = functools.reduce(jnp.add, [w.sum(-1, keepdims=True) for w in weights])
    sums = [
        part.times("...qs,...sd->...qd", w, part.values)
        for w, part in zip(weights, parts, strict=True)
    ]
    out = (functools.reduce(jnp.add, sums) / total).astype(q.dtype)
    log_total = top + jnp.log(total)
    out, log_total = checkpoint_name(out, ATTENDED), checkpoint_name(log_total, ATTENDED)
    return out, (q, parts, out, log_total)


def _backward(rule: Rule, saved: Any, cotangent: Array) -> tuple[Array, list[_Keys]]:
    q, parts, out, log_total = saved
    cotangent = cotangent.astype(jnp.float32)
    mean = jnp.sum(cotangent * out.astype(jnp.float32), -1, keepdims=True)
    dq, changes = jnp.zeros(q.shape), []
    for part in parts:
        capped = part.scores(rule, q)
        weights = part.masked(jnp.exp(capped - log_total), 0.0)
        dvalues = part.summed(weights, cotangent.astype(q.dtype))
        dweights = part.times("...qd,...sd->...qs", cotangent, part.values)
        dscores = weights * (dweights - mean)
        if rule.softcap is not None:
            dscores = dscores * (1 - (capped / rule.softcap) ** 2)
        dq = dq + part.times("...qs,...sd->...qd", dscores, part.keys)
        dkeys = part.summed(dscores, q)
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
