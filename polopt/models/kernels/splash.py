"""JAX's flash attention for TPUs ("splash attention", 2205.14135) on one part of the keys.

A call gives the result and the log-sum-exp of its keys; `join` makes one attention of several
calls. The backward pass of a part needs the result and the log-sum-exp of all parts together, and
nothing else of the others: it is JAX's own too, called below the derivative that JAX defines, which
would take the part's softmax for the whole.

Letters as in `polopt.models.attention`; arrays are of one row, and lengths multiples of a block.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_kernel import SegmentIds
from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask_info import (
    MaskInfo,
    process_mask,
    process_mask_dkv,
)

from polopt.models.attention import Rule
from polopt.models.kernels import LANES

_BLOCKS = (512, 256, LANES)  # a block is the largest of these that divides


@dataclasses.dataclass(frozen=True)
class How:
    """What no array says."""

    rule: Rule
    emulated: bool


@dataclasses.dataclass(frozen=True)
class Mask:
    """A mask, as the kernels take it: one description per kernel, of blocks to visit."""

    forward: MaskInfo
    dq: MaskInfo | None
    dkv: MaskInfo | None
    function: Callable[[Any, Any], Any] | None  # of where queries and keys are, in visited blocks
    sizes: splash.BlockSizes

    def at(self, position: Array) -> Mask:
        """The same, with queries elsewhere than at 0, 1, and so on."""

        def moved(info: MaskInfo | None) -> Any:
            return info and info._replace(q_sequence=position)

        return dataclasses.replace(
            self, forward=moved(self.forward), dq=moved(self.dq), dkv=moved(self.dkv)
        )


@functools.lru_cache(maxsize=64)
def causal(T: int, window: int | None) -> Mask:
    """Of a row against itself."""
    if window is None:
        return _mask(masks.CausalMask((T, T)))
    return _mask(masks.LocalMask((T, T), window_size=(window - 1, 0), offset=0))


@functools.lru_cache(maxsize=64)
def everything(T: int, S: int, window: int | None) -> Mask:
    """Of rows against their prompt, which lies before them: with a window, `at` says how far."""
    mask = _mask(masks.FullMask((T, S)))
    if window is None:
        return mask
    return dataclasses.replace(mask, function=lambda q, k: q - k < window)


def _mask(mask: Any) -> Mask:
    """What JAX makes of a mask."""
    every, sizes = masks.MultiHeadMask([mask]), block_sizes(*mask.shape)
    block = (sizes.block_q, sizes.block_kv)
    forward, function = process_mask(every, block)  # one mask serves all heads
    dkv, _ = process_mask_dkv(every, block)
    return Mask(forward, forward, dkv, function, sizes)


def block_sizes(rows: int, columns: int) -> splash.BlockSizes:
    """How many queries and keys are a block: as many as divide, up to the largest block."""
    rows, columns = (next((b for b in _BLOCKS if n % b == 0), n) for n in (rows, columns))
    return splash.BlockSizes(
        block_q=rows,
        block_kv=columns,
        block_q_dkv=rows,
        block_kv_dkv=columns,
        block_q_dq=rows,
        block_kv_dq=columns,
    )


def forward(
    how: How, mask: Mask, ids: SegmentIds | None, q: Array, k: Array, v: Array
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


def backward(
    how: How,
    mask: Mask,
    ids: SegmentIds | None,
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


def _options(how: How, mask: Mask) -> dict[str, Any]:
    return {
        "mask_value": splash.DEFAULT_MASK_VALUE,
        "is_mqa": False,
        "block_sizes": mask.sizes,
        "mask_function": mask.function,
        "attn_logits_soft_cap": how.rule.softcap,
        "interpret": how.emulated,
    }


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


def to_blocks(x: Array, axis: int, fill: int = 0, size: int = LANES) -> Array:
    """`x`, filled up along an axis to a multiple of `size`."""
    room = [(0, 0)] * x.ndim
    room[axis] = (0, -x.shape[axis] % size)
    return jnp.pad(x, room, constant_values=fill)
