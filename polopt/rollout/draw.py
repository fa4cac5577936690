"""Drawing tokens: what filters keep, an inverse CDF, and the log-probabilities of what was drawn.

A draw belongs to a row's id and a position, never to a slot in a batch: one uniform number per row
from `fold_in(fold_in(key, id), position)` walks the cumulative distribution. It is cheaper than
one Gumbel variable per vocabulary entry, and padding the batch or the vocabulary cannot change it.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from polopt.errors import PoloptError
from polopt.types import Array

_STATIC = {"static": True}
_ONE = 0x3F800000  # the bits of 1.0 in float32; positive floats are ordered as their bits


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoding:
    """From which distribution tokens are drawn; filters act in the order of the fields.

    `temperature` is traced (changing it compiles nothing); the rest shapes the program.

    Args:
      temperature: divides the logits; above 0, or f32[N] for one per row.
      top_k: how many of the most likely tokens stay, ties with the last included; 0 for all.
      top_p: share of what top_k kept that the most likely tokens must reach; in (0, 1].
      min_p: probability below which a token goes, relative to the largest; in [0, 1).
      greedy: take the most likely token, always.

    >>> Decoding(temperature=0.7, top_p=0.95).top_k
    0

    Raises:
      PoloptError: a number outside its range.
    """

    temperature: float | Array = 1.0
    top_k: int = dataclasses.field(default=0, metadata=_STATIC)
    top_p: float = dataclasses.field(default=1.0, metadata=_STATIC)
    min_p: float = dataclasses.field(default=0.0, metadata=_STATIC)
    greedy: bool = dataclasses.field(default=False, metadata=_STATIC)

    def __post_init__(self) -> None:
        checks = {
            "temperature": (_positive(self.temperature), "a number above 0 (or greedy=True)"),
            "top_k": (isinstance(self.top_k, int) and self.top_k >= 0, "an integer of 0 or more"),
            "top_p": (0 < self.top_p <= 1, "a number above 0, at most 1"),
            "min_p": (0 <= self.min_p < 1, "a number from 0, below 1"),
        }
        for name, (good, accepted) in checks.items():
            if not good:
                raise PoloptError(f"Decoding.{name} is {getattr(self, name)!r}: give {accepted}")


class Drawn(NamedTuple):
    """One token per row. `logp_sampler + log_keep` is its unfiltered, tempered log-probability."""

    token: Array  # i32[N]
    logp_sampler: Array  # f32[N] under the filtered distribution that it was drawn from
    log_keep: Array  # f32[N] log of the mass that the filters kept
    entropy: Array | None = None  # f32[N], where asked for


def row_keys(key: Array, ids: Array) -> Array:
    """One key per row of `ids i32[N]`."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, ids)


def uniform_at(keys: Array, position: Array) -> Array:
    """f32[N] in [0, 1): the random number of each row at a completion position (i32[] or [N])."""
    position = jnp.broadcast_to(position, keys.shape)
    return jax.vmap(lambda key, at: jax.random.uniform(jax.random.fold_in(key, at)))(keys, position)


def draw(
    logits: Array, uniform: Array, decoding: Decoding, *, allowed_vocab: int | None = None
) -> Drawn:
    """Draw one token per row.

    Args:
      logits: f32[N,V].
      uniform: f32[N] in [0, 1).
      decoding: temperature and filters.
      allowed_vocab: only ids below it may be drawn (1 to V); all when not given. What it forbids
        counts as filtered: it is part of `log_keep`.

    Returns:
      Drawn.
    """
    N, V = logits.shape
    temperature = jnp.broadcast_to(jnp.asarray(decoding.temperature, jnp.float32), (N,))
    logits = logits.astype(jnp.float32) / temperature[:, None]
    allowed = logits
    if allowed_vocab is not None:
        allowed = jnp.where(jnp.arange(V)[None] < allowed_vocab, logits, -jnp.inf)
    top = allowed.max(-1)
    weights = jnp.exp(allowed - top[:, None])  # the largest is 1
    if decoding.greedy:
        token, mass = jnp.argmax(allowed, -1).astype(jnp.int32), jnp.ones(N)
    else:
        weights = filter_weights(weights, decoding)
        token, mass = inverse_cdf(weights, uniform)
    relative = jnp.take_along_axis(logits, token[:, None], 1)[:, 0] - top
    log_mass = jnp.log(mass)
    if allowed_vocab is None and not _filters(decoding):
        log_keep = jnp.zeros(N)
    else:
        log_keep = log_mass + top - jax.nn.logsumexp(logits, -1)
    return Drawn(token, relative - log_mass, log_keep)


def entropy_of(logits: Array, decoding: Decoding) -> Array:
    """f32[N]: the entropy in nats of `logits f32[N,V]`, tempered and unfiltered."""
    temperature = jnp.broadcast_to(jnp.asarray(decoding.temperature, jnp.float32), logits.shape[:1])
    logp = jax.nn.log_softmax(logits.astype(jnp.float32) / temperature[:, None])
    return -jnp.sum(jnp.exp(logp) * logp, -1)


def filter_weights(weights: Array, decoding: Decoding) -> Array:
    """Zero what top-k, top-p and min-p remove from `weights f32[N,V]`, whose row maxima are 1.

    Every filter keeps the weights at or above some floor, so ties are kept or removed together.
    """
    floor = jnp.full(weights.shape[:1], decoding.min_p)
    if 0 < decoding.top_k < weights.shape[1]:
        largest = jax.lax.top_k(weights, decoding.top_k)[0]
        before = jnp.cumsum(largest, -1) - largest
        kept = before < decoding.top_p * largest.sum(-1, keepdims=True)
        floor = jnp.maximum(floor, jnp.where(kept, largest, 1.0).min(-1))
    elif decoding.top_p < 1:
        floor = jnp.maximum(floor, _nucleus_floor(weights, decoding.top_p))
    return jnp.where(weights >= floor[:, None], weights, 0.0)


def inverse_cdf(weights: Array, uniform: Array) -> tuple[Array, Array]:
    """Index drawn with probability proportional to `weights f32[N,V]`, and their sum f32[N].

    Two levels, first a block and then an entry in it: a running sum over all of V costs more than
    the rest of the draw. An index of weight zero is never returned, whatever rounding does.
    """
    N, V = weights.shape
    size = 2 ** round(math.log2(V) / 2)
    blocks = jnp.pad(weights, ((0, 0), (0, -V % size))).reshape(N, -1, size)
    sums = blocks.sum(-1)
    running = jnp.cumsum(sums, -1)
    total = running[:, -1]
    target = uniform * total
    block = _first_above(running, sums, target)
    chosen = jnp.take_along_axis(blocks, block[:, None, None], 1)[:, 0]
    start = jnp.take_along_axis(running - sums, block[:, None], 1)[:, 0]
    entry = _first_above(jnp.cumsum(chosen, -1), chosen, target - start)
    return block * size + entry, total


def _first_above(running: Array, parts: Array, target: Array) -> Array:
    """i32[N]: the first j with running[j] > target and parts[j] > 0; if none, the last part > 0."""
    some = parts > 0
    hit = (running > target[:, None]) & some
    last = jnp.where(some, jnp.arange(parts.shape[1])[None], 0).max(-1)
    return jnp.where(hit.any(-1), jnp.argmax(hit, -1), last).astype(jnp.int32)


def _nucleus_floor(weights: Array, top_p: float) -> Array:
    """f32[N]: the largest floor at or above which lies a share `top_p` of the weight.

    A bisection over the bits of the floor: exact in 31 passes, where a sort costs as much as
    decoding the token.
    """
    wanted = top_p * weights.sum(-1)

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low + high) // 2
        floor = jax.lax.bitcast_convert_type(middle, jnp.float32)[:, None]
        enough = jnp.where(weights >= floor, weights, 0.0).sum(-1) >= wanted
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    low = jnp.zeros(weights.shape[0], jnp.int32)
    low, _ = jax.lax.fori_loop(0, 31, halve, (low, jnp.full_like(low, _ONE + 1)))
    return jax.lax.bitcast_convert_type(low, jnp.float32)


def _filters(decoding: Decoding) -> bool:
    return bool(decoding.greedy or decoding.top_k or decoding.top_p < 1 or decoding.min_p > 0)


def _positive(temperature: float | Array) -> bool:
    """Arrays are not looked at: they may be traced."""
    return not isinstance(temperature, int | float) or temperature > 0
