"""Attention of whole rows by splash attention, JAX's flash attention for TPUs.

What `polopt.models.attention.attention` computes, forward and backward, without scores in memory:
the kernel walks over blocks of keys and keeps a running softmax (2205.14135, algorithm 1). A prompt
that several rows continue is a part of its own: queries see it by one call of the kernel, and their
own row by another, and the log-sum-exp of both joins them. Its keys are not repeated, and no block
is visited in which nothing is visible. The backward pass of a part needs the result and the
log-sum-exp of all parts, and nothing else of the others; it is JAX's own, called below the
derivative that JAX defines, which would take a part's softmax for the whole.

Letters as in `polopt.models.attention`; here T, S and C are multiples of a block's least size.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask_info as mask_info

from polopt.models.attention import ATTENDED, KeyValue, Rule
from polopt.models.kernels import LANES
from polopt.models.spread import by_heads

_BLOCKS = (512, 256, LANES)  # a block is the largest of these that divides
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
        S = prompt[0].shape[2]
        unreal = jnp.arange(S)[None] >= length[:, None]
        parts.append(
            _Shared(
                *(to_blocks(x, 2) for x in prompt),
                unreal=to_blocks(unreal.astype(jnp.int32), 1, 1),
                position=to_blocks(position, 1).reshape(P, -1),
            )
        )
    how = _How(rule, emulated)
    out = _attend(how, q, parts)
    return out.transpose(0, 2, 3, 1, 4).reshape(N, -1, H, d)[:, :T]


def to_blocks(x: Array, axis: int, fill: int = 0, size: int = LANES) -> Array:
    """`x`, filled up along an axis to a multiple of `size`."""
    room = [(0, 0)] * x.ndim
    room[axis] = (0, -x.shape[axis] % size)
    return jnp.pad(x, room, constant_values=fill)


@dataclasses.dataclass(frozen=True)
class _How:
    """What no array says."""

    rule: Rule
    emulated: bool


@dataclasses.dataclass(frozen=True)
class _Mask:
    """A mask, as the kernels take it: one description per kernel, of blocks to visit."""

    forward: mask_info.MaskInfo
    dq: mask_info.MaskInfo
    dkv: mask_info.MaskInfo
    function: Callable[[Any, Any], Any] | None  # of where queries and keys are, in visited blocks
    sizes: splash.BlockSizes

    def at(self, position: Array) -> _Mask:
        """The same, with queries elsewhere than at 0, 1, and so on."""
        moved = (info._replace(q_sequence=position) for info in (self.forward, self.dq, self.dkv))
        return _Mask(*moved, self.function, self.sizes)


@functools.lru_cache(maxsize=64)
def _causal(T: int, window: int | None) -> _Mask:
    """Of a row against itself."""
    if window is None:
        return _mask(masks.CausalMask((T, T)))
    return _mask(masks.LocalMask((T, T), window_size=(window - 1, 0), offset=0))


@functools.lru_cache(maxsize=64)
def _everything(T: int, S: int, window: int | None) -> _Mask:
    """Of rows against their prompt, which lies before them: with a window, `at` says how far."""
    mask = _mask(masks.FullMask((T, S)))
    if window is None:
        return mask
    return dataclasses.replace(mask, function=lambda q, k: q - k < window)


def _mask(mask: Any) -> _Mask:
    """What JAX makes of a mask."""
    rows, columns = (next(b for b in _BLOCKS if size % b == 0) for size in mask.shape)
    every, block = masks.MultiHeadMask([mask]), (rows, columns)  # one mask serves all heads
    forward, function = mask_info.process_mask(every, block)
    dkv, _ = mask_info.process_mask_dkv(every, block)
    sizes = splash.BlockSizes(
        block_q=rows,
        block_kv=columns,
        block_q_dkv=rows,
        block_kv_dkv=columns,
        block_q_dq=rows,
        block_kv_dq=columns,
    )
    return _Mask(forward, forward, dkv, function, sizes)


def _forward_of(
    how: _How, mask: _Mask, ids: splash.SegmentIds | None, q: Array, k: Array, v: Array
) -> tuple[Array, Array]:
    """(`[H,T,d]`, log-sum-exp `f32[H,T]`) of `q [H,T,d]` and `k, v [K,S,d]`."""
    kernel = splash.SplashAttentionKernel(
        mask.forward,
        None,
        None,
        save_residuals=True,
        residual_checkpoint_name=None,
        **_options(how, mask),
    )
    out, (log_total,) = kernel(q, k, v, ids)
    return out, log_total


def _backward_of(
    how: _How,
    mask: _Mask,
    ids: splash.SegmentIds | None,
    k: Array,
    v: Array,
    q: Array,
    out: Array,
    log_total: Array,
    cotangent: Array,
) -> tuple[Array, Array, Array]:
    """Cotangents of q, k and v; `out` and `log_total` are of all parts."""
    saved = (q, k, v, ids, None, out, log_total, mask.dq, mask.dkv)
    # Below JAX's interface, and the same from JAX 0.10 to 0.12: the tests run it on both.
    made = splash._splash_attention_bwd(
        save_residuals=False,
        residual_checkpoint_name=None,
        res=saved,
        do=cotangent,
        **_options(how, mask),
    )
    return made[3:6]


def _options(how: _How, mask: _Mask) -> dict[str, Any]:
    return {
        "mask_value": splash.DEFAULT_MASK_VALUE,
        "is_mqa": False,
        "block_sizes": mask.sizes,
        "mask_function": mask.function,
        "attn_logits_soft_cap": how.rule.softcap,
        "interpret": how.emulated,
    }


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Own:
    """The rows that queries are in; queries are [P,H,G,T,d]."""

    keys: Array  # [P,G,K,T,d]
    values: Array
    segment: Array | None  # i32[P,G,T]

    def forward(self, how: _How, q: Array) -> tuple[Array, Array]:
        """([P,H,G,T,d], f32[P,H,G,T])."""
        mask = _causal(q.shape[-2], how.rule.window)

        def row(segment: Array | None, k: Array, v: Array, q: Array) -> tuple[Array, Array]:
            return _forward_of(how, mask, _same(segment), q, k, v)

        rows = jax.vmap(row, in_axes=(0, 0, 0, 1), out_axes=1)
        return jax.vmap(rows)(self.segment, self.keys, self.values, q)

    def backward(self, how: _How, *saved: Array) -> tuple[Array, _Own]:
        """Cotangents of q and of this, of `saved`: q, result, log-sum-exp and its cotangent."""
        mask = _causal(saved[0].shape[-2], how.rule.window)

        def row(segment: Array | None, *arrays: Array) -> tuple[Array, Array, Array]:
            return _backward_of(how, mask, _same(segment), *arrays)

        rows = jax.vmap(row, in_axes=(0, 0, 0, 1, 1, 1, 1), out_axes=(1, 0, 0))
        dq, dk, dv = jax.vmap(rows)(self.segment, self.keys, self.values, *saved)
        return dq, _Own(dk, dv, _no_gradient())


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Shared:
    """The prompts that rows continue: to the kernel, all rows of one are one row of queries."""

    keys: Array  # [P,K,S,d]
    values: Array
    unreal: Array  # i32[P,S], 1 where there is no token
    position: Array  # i32[P,G*T]

    def forward(self, how: _How, q: Array) -> tuple[Array, Array]:
        """([P,H,G,T,d], f32[P,H,G,T])."""

        def prompt(shared: _Shared, q: Array) -> tuple[Array, Array]:
            return _forward_of(how, *shared._seen(how), q, shared.keys, shared.values)

        out, log_total = jax.vmap(prompt)(self, _one_row(q))
        return out.reshape(q.shape), log_total.reshape(q.shape[:-1])

    def backward(self, how: _How, *saved: Array) -> tuple[Array, _Shared]:
        """As of `_Own`."""

        def prompt(shared: _Shared, *saved: Array) -> tuple[Array, Array, Array]:
            return _backward_of(how, *shared._seen(how), shared.keys, shared.values, *saved)

        q, out, log_total, cotangent = saved
        rows = (_one_row(q), _one_row(out), log_total.reshape(*q.shape[:2], -1))
        dq, dk, dv = jax.vmap(prompt)(self, *rows, _one_row(cotangent))
        return dq.reshape(q.shape), _Shared(dk, dv, _no_gradient(), _no_gradient())

    def _seen(self, how: _How) -> tuple[_Mask, splash.SegmentIds]:
        """Of one prompt."""
        rows, window = self.position.shape[0], how.rule.window
        mask = _everything(rows, self.unreal.shape[0], window)
        ids = splash.SegmentIds(jnp.zeros(rows, jnp.int32), self.unreal)
        return (mask if window is None else mask.at(self.position)), ids


def _same(segment: Array | None) -> splash.SegmentIds | None:
    return None if segment is None else splash.SegmentIds(segment, segment)


def _one_row(x: Array) -> Array:
    """[P,H,G*T,d] of `x [P,H,G,T,d]`."""
    return x.reshape(*x.shape[:2], -1, x.shape[-1])


def _no_gradient() -> Any:
    """How a rule tells JAX that there is none."""
    return None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(how: _How, q: Array, parts: list[Any]) -> Array:
    """[P,H,G,T,d] of `q [P,H,G,T,d]`, which is scaled."""
    return _forward(how, q, parts)[0]


def _forward(how: _How, q: Array, parts: list[Any]) -> tuple[Array, Any]:
    outs, totals = zip(*(part.forward(how, q) for part in parts), strict=True)
    out, log_total = join(outs, totals)
    out, log_total = checkpoint_name(out, ATTENDED), checkpoint_name(log_total, ATTENDED)
    return out, (q, parts, out, log_total)


def _backward(how: _How, saved: Any, cotangent: Array) -> tuple[Array, list[Any]]:
    q, parts, out, log_total = saved
    made = [part.backward(how, q, out, log_total, cotangent) for part in parts]
    dq = functools.reduce(jnp.add, [dq.astype(jnp.float32) for dq, _ in made])
    return dq.astype(q.dtype), [change for _, change in made]


_attend.defvjp(_forward, _backward)


def join(outs: Any, totals: Any) -> tuple[Array, Array]:
    """Attention to several parts together, of that to each: its result, and log-sum-exp.

    A part in which a query sees nothing has a log-sum-exp that no other comes near, and no weight.
    """
    if len(outs) == 1:
        return outs[0], totals[0]
    log_total = functools.reduce(jnp.logaddexp, totals)
    weighed = [
        jnp.exp(total - log_total)[..., None] * out.astype(jnp.float32)
        for out, total in zip(outs, totals, strict=True)
    ]
    return functools.reduce(jnp.add, weighed).astype(outs[0].dtype), log_total
