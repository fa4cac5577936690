"""Attention of one token per row by splash attention, JAX's flash attention kernel for TPUs.

What `polopt.models.attention.attention` computes for a decoding step, without scores in memory, and
without reading what no token sees: blocks of a ring in which nothing of its row is visible are
neither fetched nor computed. Rows of one prompt read its keys together. A device with more rows
than the kernel's tables hold (`polopt.models.kernels.fits`) leaves the step to XLA.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import Array

from polopt.models.attention import KeyValue, Rule, on_device
from polopt.models.kernels import fits
from polopt.models.kernels.rows import Shared
from polopt.models.kernels.splash import (
    How,
    Mask,
    MaskInfo,
    block_sizes,
    forward,
    join,
    to_blocks,
)
from polopt.models.spread import by_heads

_SUBLANES = 8  # queries of a head are filled up to it


def attend(
    q: Array,
    own: KeyValue,
    visible: Array,
    rule: Rule,
    prompt: KeyValue,
    prompt_visible: Array,
    *,
    length: Array,
    position: Array,
    emulated: bool = False,
) -> Array:
    """Attention of one query per row to its row's ring, and to the prompt that it continues.

    Args:
      q: [N,1,H,d], rotated.
      own: each [N,K,C,d], keys rotated; C a multiple of `polopt.models.kernels.LANES`.
      visible: bool[N,C], at least one of each row.
      rule: of the layer.
      prompt: each [P,K,S,d]; S a multiple of it as well, or all of it is copied.
      prompt_visible: bool[N,1,S].
      length: i32[P], real tokens of the prompts.
      position: i32[N,1], where queries are, counted from the beginning of their prompt.
      emulated: compute what the kernel would, on any platform, slowly.

    Returns:
      [N,1,H,d]; of a float32 computation within 2e-5 of the reference.
    """
    P, K = prompt[0].shape[:2]
    local = functools.partial(_attend, How(rule, emulated))
    args = (q, own, visible, prompt, prompt_visible, length, position)
    return by_heads(local, *args, rows=P, heads=K, opaque=True)


def _attend(
    how: How,
    q: Array,
    own: KeyValue,
    visible: Array,
    prompt: KeyValue,
    prompt_visible: Array,
    length: Array,
    position: Array,
) -> Array:
    """The same of the rows and heads of one device."""
    N, _, H, d = q.shape
    P, K = prompt[0].shape[:2]
    if not fits(N, K, own[0].shape[2]):
        return on_device(how.rule, q, own, visible[:, None], prompt, prompt_visible)
    G, R = N // P, H // K
    q = (q * how.rule.scale).reshape(N, K, R, d)
    ring = _ring(how, to_blocks(q, 2, size=_SUBLANES), own, visible)
    # Heads that share a key head, and rows that share a prompt, are queries side by side.
    beside = q.reshape(P, G, K, R, d).swapaxes(1, 2).reshape(P, K, 1, G * R, d)
    position = jnp.repeat(position.reshape(P, G), R, axis=1)
    shared = Shared.of(prompt, length, to_blocks(position, 1, size=_SUBLANES))
    found = shared.forward(how, to_blocks(beside, 3, size=_SUBLANES))

    def by_row(x: Array) -> Array:
        x = x[:, :, 0, : G * R].reshape(P, K, G, R, *x.shape[4:])
        return x.swapaxes(1, 2).reshape(N, K, R, *x.shape[4:])

    outs, totals = zip((x[:, :, :R] for x in ring), map(by_row, found), strict=True)
    return join(outs, totals)[0].reshape(N, 1, H, d)


def _ring(how: How, q: Array, own: KeyValue, visible: Array) -> tuple[Array, Array]:
    """([N,K,R,d], log-sum-exp f32[N,K,R]) of `q [N,K,R,d]`; rows are heads to the kernel."""
    N, K, R, d = q.shape
    sizes = block_sizes(R, own[0].shape[2])
    blocks = visible.reshape(N, -1, 1, sizes.block_kv)
    some, count = blocks.any((2, 3)), blocks.shape[1]
    # Where nothing runs, what was fetched stays: a block that runs later, or else the last one.
    here = jnp.arange(count)[None]
    later = jax.lax.cummin(jnp.where(some, here, count), axis=1, reverse=True)
    last = jnp.max(jnp.where(some, here, 0), axis=1, keepdims=True)
    fetched = jnp.where(later < count, later, last)

    def every_head(x: Array) -> Array:
        return jnp.repeat(x.astype(jnp.int32), K, axis=0)[:, None]

    info = MaskInfo(
        data_next=every_head(fetched),
        mask_next=every_head(fetched + count * jnp.arange(N)[:, None]),
        block_mask=every_head(some),
        partial_mask_blocks=jnp.broadcast_to(
            blocks.reshape(-1, 1, sizes.block_kv), (N * count, R, sizes.block_kv)
        ),
        q_sequence=None,
    )
    mask = Mask(forward=info, dq=None, dkv=None, function=None, sizes=sizes)
    keys, values = (x.reshape(N * K, -1, d) for x in own)
    out, log_total = forward(how, mask, None, q.reshape(N * K, R, d), keys, values)
    return out.reshape(N, K, R, d), log_total.reshape(N, K, R)
