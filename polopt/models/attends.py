"""What a query sees, in each way of running a decoder, and who computes its attention.

Every function gives the `attend` that `polopt.models.decoder.Decoder` is called with; `kind` is of
`polopt.models.kernels`. Letters as in `polopt.models.attention`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from polopt.models.attention import KeyValue, Rule, attention, near
from polopt.models.decoder import Attend
from polopt.models.flat import Flat
from polopt.models.kernels import EMULATED, covers_decoding, covers_rows, in_blocks
from polopt.models.spread import on_heads, whole_rows


def causal(kind: str) -> Attend:
    """Rows alone: each token sees those before it, and itself."""

    def attend(q: Array, k: Array, v: Array, rule: Rule, _: None) -> tuple[Array, None]:
        return _rows(kind, q, _heads_first(k, v), rule), None

    return attend


def keeping(kind: str) -> Attend:
    """The same, with keys and values for whoever continues the rows."""

    def attend(q: Array, k: Array, v: Array, rule: Rule, _: None) -> tuple[Array, KeyValue]:
        own = jax.tree.map(on_heads, _heads_first(k, v))
        kept = jax.tree.map(_whole_blocks, own) if covers_decoding(kind, q.shape[-1]) else own
        return _rows(kind, q, own, rule), kept

    return attend


def packed(kind: str, length: Array, positions: Array, segment: Array) -> Attend:
    """Tokens of bins: each sees its prompt, and its own continuation up to itself.

    Args:
      kind: who computes.
      length: i32[P], real tokens of the prompts; the attention is handed their keys and values.
      positions: i32[N,T], of the tokens.
      segment: i32[N,T], which continuation of the bin a token is of.
    """

    def attend(q: Array, k: Array, v: Array, rule: Rule, shared: KeyValue) -> tuple[Array, None]:
        own, T = _heads_first(k, v), q.shape[1]
        if covers_rows(kind, T):
            from polopt.models.kernels import rows

            how = {"length": length, "position": positions, "emulated": kind == EMULATED}
            return rows.attend(q, own, rule, segment=segment, prompt=shared, **how), None
        visible = (segment[:, :, None] == segment[:, None, :]) & near(_back(T), rule)
        seen = _prompt_visible(shared[0].shape[2], length, positions, rule)
        return attention(q, own, visible, rule, shared, seen), None

    return attend


def laid_out(kind: str, flat: Flat, length: Array, positions: Array, segment: Array) -> Attend:
    """Prompts and the bins that continue them at once: the weights of a layer are read once.

    Args:
      kind: who computes.
      flat: how prompts and bins lie in rows.
      length, positions, segment: as `packed` takes them.
    """
    prompts, bins = keeping(kind), packed(kind, length, positions, segment)

    def attend(q: Array, k: Array, v: Array, rule: Rule, _: None) -> tuple[Array, None]:
        heads = k.shape[2]
        cut = (flat.apart(whole_rows(x, heads)) for x in (q, k, v))
        (q, more_q), (k, more_k), (v, more_v) = cut
        out, shared = prompts(q, k, v, rule, None)
        return flat.joined(out, bins(more_q, more_k, more_v, rule, shared)[0]), None

    return attend


def cached(kind: str, length: Array, positions: Array, step: Any, place: Array) -> Attend:
    """One token of every row, which sees its prompt and what its ring has of its own.

    Args:
      kind: who computes.
      length: i32[P], real tokens of the prompts.
      positions: i32[N,1], of the tokens.
      step: i32[], calls before this one.
      place: i32[N], own tokens of each row before this one.
    """

    def attend(q: Array, k: Array, v: Array, rule: Rule, memory: Any) -> tuple[Array, KeyValue]:
        shared, own = memory
        C = own[0].shape[2]
        own = jax.tree.map(
            lambda room, new: jax.lax.dynamic_update_slice_in_dim(room, new, step % C, axis=2),
            own,
            _heads_first(k, v),
        )
        age = (step - jnp.arange(C)) % C
        visible = near(age, rule)[None] & (age[None] <= place[:, None])
        seen = _prompt_visible(shared[0].shape[2], length, positions, rule)
        if covers_decoding(kind, q.shape[-1]):
            from polopt.models.kernels import decode

            how = {"length": length, "position": positions, "emulated": kind == EMULATED}
            return decode.attend(q, own, visible, rule, shared, seen, **how), own
        return attention(q, own, visible[:, None], rule, shared, seen), own

    return attend


def by_row(x: Array, count: int) -> Array:
    """[N,1] of `x [P]`: that of each row's prompt."""
    return jnp.repeat(x, count // x.shape[0])[:, None]


def _rows(kind: str, q: Array, own: KeyValue, rule: Rule) -> Array:
    """Causal attention. Padding on the right needs no mask: no real position comes after it."""
    if covers_rows(kind, q.shape[1]):
        from polopt.models.kernels import rows

        return rows.attend(q, own, rule, emulated=kind == EMULATED)
    return attention(q, own, near(_back(q.shape[1]), rule), rule)


def _heads_first(k: Array, v: Array) -> KeyValue:
    return k.swapaxes(1, 2), v.swapaxes(1, 2)


def _whole_blocks(x: Array) -> Array:
    """`x [rows,K,S,d]`, filled up once, so that no decoding step has to."""
    return jnp.pad(x, ((0, 0), (0, 0), (0, in_blocks(x.shape[2]) - x.shape[2]), (0, 0)))


def _back(T: int) -> Array:
    """i32[1,T,T]: how many positions key s lies behind query t."""
    return (jnp.arange(T)[:, None] - jnp.arange(T)[None])[None]


def _prompt_visible(S: int, length: Array, positions: Array, rule: Rule) -> Array:
    """bool[N,T or 1,S]: what queries at `positions i32[N,T]` see of their prompts' real tokens."""
    real = (jnp.arange(S)[None] < by_row(length, positions.shape[0]))[:, None, :]
    if rule.window is None:
        return real
    return real & near(positions[:, :, None] - jnp.arange(S)[None, None], rule)
