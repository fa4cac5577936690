"""Attention of whole rows by splash attention: training, scoring, and reading prompts.

What `polopt.models.attention.attention` computes, forward and backward, without scores in memory. A
prompt that several rows continue is a part of its own: queries see it by one call of the kernel,
and their own row by another. So its keys are not repeated, its gradient is summed in the kernel,
and no block is visited in which nothing is visible.

Letters as in `polopt.models.attention`.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from polopt.models.attention import ATTENDED, KeyValue, Rule
from polopt.models.kernels.splash import (
    How,
    Mask,
    SegmentIds,
    backward,
    causal,
    everything,
    forward,
    join,
    to_blocks,
)
from polopt.models.spread import by_heads

_PADDING = -2  # segment of places that were added


def attend(
    q: Array,
    own: KeyValue,
    rule: Rule,
    *,
    segment: Array | None = None,
    prompt: KeyValue | None = None,
    length: Array | None = None,
    position: Array | None = None,
    emulated: bool = False,
) -> Array:
    """Causal attention of every query to its own row, and to the prompt that this continues.

    Args:
      q: [N,T,H,d], rotated.
      own: each [N,K,T,d], keys rotated.
      rule: of the layer.
      segment: i32[N,T]; a query sees its own segment of the row only. All of the row if not given.
      prompt: each [P,K,S,d].
      length: i32[P], real tokens of the prompts.
      position: i32[N,T], where queries are, counted from the beginning of their prompt.
      emulated: compute what the kernel would, on any platform, slowly.

    Returns:
      [N,T,H,d]; of a float32 computation within 2e-5 of the reference, and so its gradients.
    """
    K = own[0].shape[1]
    P = q.shape[0] if prompt is None else prompt[0].shape[0]
    local = functools.partial(_padded, rule, emulated)
    args = (q, own, segment, prompt, length, position)
    return by_heads(local, *args, rows=P, heads=K, opaque=True)


def _padded(
    rule: Rule,
    emulated: bool,
    q: Array,
    own: KeyValue,
    segment: Array | None,
    prompt: KeyValue | None,
    length: Array | None,
    position: Array | None,
) -> Array:
    """The same of the rows and heads of one device, with lengths rounded up to blocks."""
    N, T, H, d = q.shape
    P = N if prompt is None else prompt[0].shape[0]
    G = N // P
    q = to_blocks(q * rule.scale, 1).reshape(P, G, -1, H, d).transpose(0, 3, 1, 2, 4)
    keys, values = (to_blocks(x, 2).reshape(P, G, *x.shape[1:2], -1, d) for x in own)
    if segment is not None:
        segment = to_blocks(segment, 1, _PADDING).reshape(P, G, -1)
    parts: list[Any] = [_Own(keys, values, segment)]
    if prompt is not None:
        assert length is not None
        assert position is not None
        parts.append(Shared.of(prompt, length, to_blocks(position, 1).reshape(P, -1)))
    out = cast(Array, _attend(How(rule, emulated), q, parts))
    return out.transpose(0, 2, 3, 1, 4).reshape(N, -1, H, d)[:, :T]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Own:
    """The rows that queries are in; queries are [P,H,G,T,d]."""

    keys: Array  # [P,G,K,T,d]
    values: Array
    segment: Array | None  # i32[P,G,T]

    def forward(self, how: How, q: Array) -> tuple[Array, Array]:
        """([P,H,G,T,d], f32[P,H,G,T])."""
        mask = causal(q.shape[-2], how.rule.window)

        def row(segment: Array | None, k: Array, v: Array, q: Array) -> tuple[Array, Array]:
            return forward(how, mask, _same(segment), q, k, v)

        rows = jax.vmap(row, in_axes=(0, 0, 0, 1), out_axes=1)
        return jax.vmap(rows)(self.segment, self.keys, self.values, q)

    def backward(self, how: How, *saved: Array) -> tuple[Array, _Own]:
        """Cotangents of q and of this, of `saved`: q, result, log-sum-exp and its cotangent."""
        mask = causal(saved[0].shape[-2], how.rule.window)

        def row(segment: Array | None, *arrays: Array) -> tuple[Array, Array, Array]:
            return backward(how, mask, _same(segment), *arrays)

        rows = jax.vmap(row, in_axes=(0, 0, 0, 1, 1, 1, 1), out_axes=(1, 0, 0))
        dq, dk, dv = jax.vmap(rows)(self.segment, self.keys, self.values, *saved)
        return dq, _Own(dk, dv, _no_gradient())


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Shared:
    """The prompts that rows continue: to the kernel, all rows of one are one row of queries."""

    keys: Array  # [P,K,S,d]
    values: Array
    unreal: Array  # i32[P,S], 1 where there is no token
    position: Array  # i32[P,G*T]

    @staticmethod
    def of(prompt: KeyValue, length: Array, position: Array) -> Shared:
        """Of prompts `[P,K,S,d]` with real tokens `length i32[P]`; S is rounded up."""
        unreal = jnp.arange(prompt[0].shape[2])[None] >= length[:, None]
        unreal = to_blocks(unreal.astype(jnp.int32), 1, 1)
        return Shared(*(to_blocks(x, 2) for x in prompt), unreal=unreal, position=position)

    def forward(self, how: How, q: Array) -> tuple[Array, Array]:
        """([P,H,G,T,d], f32[P,H,G,T])."""

        def prompt(shared: Shared, q: Array) -> tuple[Array, Array]:
            return forward(how, *shared._seen(how), q, shared.keys, shared.values)

        out, log_total = jax.vmap(prompt)(self, _one_row(q))
        return out.reshape(q.shape), log_total.reshape(q.shape[:-1])

    def backward(self, how: How, *saved: Array) -> tuple[Array, Shared]:
        """As of `_Own`."""

        def prompt(shared: Shared, *saved: Array) -> tuple[Array, Array, Array]:
            return backward(how, *shared._seen(how), shared.keys, shared.values, *saved)

        q, out, log_total, cotangent = saved
        rows = (_one_row(q), _one_row(out), log_total.reshape(*q.shape[:2], -1))
        dq, dk, dv = jax.vmap(prompt)(self, *rows, _one_row(cotangent))
        return dq.reshape(q.shape), Shared(dk, dv, _no_gradient(), _no_gradient())

    def _seen(self, how: How) -> tuple[Mask, SegmentIds]:
        """Of one prompt."""
        rows, window = self.position.shape[0], how.rule.window
        mask = everything(rows, self.unreal.shape[0], window)
        ids = SegmentIds(jnp.zeros(rows, jnp.int32), self.unreal)
        return (mask if window is None else mask.at(self.position)), ids


def _same(segment: Array | None) -> SegmentIds | None:
    return None if segment is None else SegmentIds(segment, segment)


def _one_row(x: Array) -> Array:
    """[P,H,G*T,d] of `x [P,H,G,T,d]`."""
    return x.reshape(*x.shape[:2], -1, x.shape[-1])


def _no_gradient() -> Any:
    """How a rule tells JAX that there is none."""
    return None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(how: How, q: Array, parts: list[Any]) -> Array:
    """[P,H,G,T,d] of `q [P,H,G,T,d]`, which is scaled."""
    return _forward(how, q, parts)[0]


def _forward(how: How, q: Array, parts: list[Any]) -> tuple[Array, Any]:
    outs, totals = zip(*(part.forward(how, q) for part in parts), strict=True)
    out, log_total = join(outs, totals)
    out, log_total = checkpoint_name(out, ATTENDED), checkpoint_name(log_total, ATTENDED)
    return out, (q, parts, out, log_total)


def _backward(how: How, saved: Any, cotangent: Array) -> tuple[Array, list[Any]]:
    q, parts, out, log_total = saved
    made = [part.backward(how, q, out, log_total, cotangent) for part in parts]
    dq = functools.reduce(jnp.add, [dq.astype(jnp.float32) for dq, _ in made])
    return dq.astype(q.dtype), [change for _, change in made]


_attend.defvjp(_forward, _backward)
