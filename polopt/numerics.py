"""Exponentials that cannot overflow, and sums over tokens, groups and steps.

Group operations are segment operations, `O(N)`: any order of rows, ragged groups. Every row sum
goes back to its rows, so callers never see a segment axis. Group id -1 (padding) is ignored.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from polopt.types import Array, Mean

TOKEN_LIMIT = 20.0
SEQUENCE_LIMIT = 10.0
_BLOCK = 64  # tokens


def safe_exp(x: Array, limit: float = TOKEN_LIMIT) -> Array:
    """exp(x) with the exponent held in [-limit, limit], and zero gradient beyond.

    Differs from the papers only beyond the limit: exp(20) is 4.9e8, a ratio that no trust region
    means to keep.

    >>> float(safe_exp(jnp.float32(0.0)))
    1.0
    >>> float(jax.grad(safe_exp)(jnp.float32(80.0)))
    0.0
    """
    return jnp.exp(jnp.clip(x, -limit, limit))


def stop(x: Array) -> Array:
    """sg[x]: a constant in the gradient."""
    return jax.lax.stop_gradient(x)


def masked_sum(x: Array, mask: Array, axis: int | None = None) -> Array:
    """Sum of `x` where `mask`; what stands elsewhere is never read, NaN and inf included."""
    return jnp.sum(jnp.where(mask, x, 0), axis=axis)


def token_info(x: Array, mask: Array) -> Mean:
    """The mean over tokens of a measurement or of a yes-or-no, as a mergeable pair."""
    x = jax.lax.stop_gradient(x)
    return Mean(sum=jnp.sum(jnp.where(mask, x, 0), dtype=float), weight=jnp.sum(mask, dtype=float))


def row_length(mask: Array) -> Array:
    """f32[N]: the number of masked-in tokens L_i of each row."""
    return jnp.sum(mask, axis=-1, dtype=float)


def row_mean(x: Array, mask: Array) -> Array:
    """f32[N]: mean over the masked-in tokens of each row, zero for a row without any."""
    return masked_sum(x, mask, axis=-1) / jnp.maximum(row_length(mask), 1)


def turn_total(x: Array, turn: Array) -> Array:
    """[N,T]: for each token the sum of `x[N,T]` over its row's tokens of the same turn; 0 at -1."""
    inside, place = turn >= 0, jnp.maximum(turn, 0)
    row = jnp.arange(x.shape[0])[:, None]
    total = jnp.zeros_like(x).at[row, place].add(jnp.where(inside, x, 0))
    return jnp.where(inside, total[row, place], 0)


def masked_quantile(x: Array, mask: Array, q: float | Array) -> Array:
    """The q-quantile of the masked-in entries, linear between two of them; 0 if there are none."""
    ordered = jnp.sort(jnp.where(mask, x, jnp.inf).reshape(-1))
    count = jnp.sum(mask)
    place = q * jnp.maximum(count - 1, 0)
    low = jnp.floor(place).astype(int)
    high = jnp.minimum(low + 1, jnp.maximum(count - 1, 0))
    a, b = ordered[low], ordered[high]
    return jnp.where(count > 0, a + (place - low) * jnp.where(b > a, b - a, 0), 0)


def _segments(ids: Array, n: int) -> Array:
    return jnp.where(ids < 0, n, ids)


def segment_total(x: Array, ids: Array) -> Array:
    """[N]: for each row the sum of `x[N]` over the rows with its id; zero for id -1.

    >>> segment_total(jnp.array([1., 2., 3.]), jnp.array([0, 1, 0])).tolist()
    [4.0, 2.0, 4.0]
    """
    n = ids.shape[0]
    total = jax.ops.segment_sum(x, _segments(ids, n), num_segments=n + 1)
    return jnp.where(ids < 0, 0, total[_segments(ids, n)])


def segment_quotient(x: Array, y: Array, ids: Array, eps: float | Array) -> Array:
    """[N]: for each row `Σ x / (Σ y + eps)` over the rows with its id; zero for id -1."""
    n, at = ids.shape[0], _segments(ids, ids.shape[0])
    above, below = (jax.ops.segment_sum(z, at, num_segments=n + 1) for z in (x, y))
    # One division and one look-up per segment, which two totals would need twice.
    return jnp.where(ids < 0, 0, (above / (below + eps))[at])


def segment_max(x: Array, ids: Array) -> Array:
    """[N]: for each row the maximum of `x[N]` over the rows with its id."""
    n = ids.shape[0]
    return jax.ops.segment_max(x, _segments(ids, n), num_segments=n + 1)[_segments(ids, n)]


def label_ids(*labels: Array) -> Array:
    """Segment ids `[M]` of flattened label arrays: equal exactly where all labels are equal.

    Labels are any integers (hashes too), and a negative one gives id -1. Ids lie in `[0, M)`.

    >>> label_ids(jnp.array([0, 0, 1, 1]), jnp.array([7, 7, 7, -1])).tolist()
    [0, 0, 2, -1]
    """
    flat = [jnp.asarray(label).reshape(-1) for label in labels]
    size = flat[0].shape[0]
    index = jnp.arange(size)

    # Sorting costs far more than hashing. Of the labels in a bucket those of its first member are
    # settled in a round, so that every round settles some, and few rounds settle all.
    def settle(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        ids, open_, round_ = carry
        bucket = _hash(flat, round_) % size
        place = jnp.where(open_, bucket, size)
        first = jnp.full(size, size).at[place].min(index, mode="drop")[bucket]
        first = jnp.minimum(first, size - 1)
        same = open_ & jnp.all(jnp.stack([label[first] == label for label in flat]), axis=0)
        return jnp.where(same, first, ids), open_ & ~same, round_ + 1

    valid = jnp.all(jnp.stack([label >= 0 for label in flat]), axis=0)
    start = (jnp.full(size, -1), valid, jnp.uint32(0))
    return jax.lax.while_loop(lambda carry: jnp.any(carry[1]), settle, start)[0]


def _hash(labels: list[Array], seed: Array) -> Array:
    """A number per entry, in which every bit of every label has a part (MurmurHash3's mixer)."""
    mixed = jnp.broadcast_to(seed * jnp.uint32(0x9E3779B1), labels[0].shape)
    for label in labels:
        mixed = (mixed ^ label.astype(jnp.uint32)) * jnp.uint32(0x85EBCA6B)
        mixed = (mixed ^ (mixed >> 13)) * jnp.uint32(0xC2B2AE35)
        mixed = mixed ^ (mixed >> 16)
    return (mixed >> 1).astype(jnp.int32)


def group_mean(x: Array, ids: Array, weight: Array) -> Array:
    """[N]: weighted mean of `x` over each row's group, zero where the group has no weight."""
    total = segment_total(jnp.where(weight > 0, x, 0) * weight, ids)
    return total / jnp.maximum(segment_total(weight, ids), _tiny(weight))


def differ(x: Array, ids: Array, weight: Array) -> Array:
    """bool[N]: the counted members of the row's group are not all equal."""
    counted = weight > 0
    low = -segment_max(jnp.where(counted, -x, -jnp.inf), ids)
    high = segment_max(jnp.where(counted, x, -jnp.inf), ids)
    return high > low


def centre(x: Array, ids: Array, weight: Array) -> Array:
    """[N]: x minus its group's mean; *exactly* zero where all counted members are equal.

    Rounding in the mean of equal rewards would otherwise leave 1e-8, which a division by a
    standard deviation of 1e-8 turns into a credit of order one.
    """
    centred = x - group_mean(x, ids, weight)
    return jnp.where((weight > 0) & differ(x, ids, weight), centred, 0)


def group_std(x: Array, ids: Array, weight: Array, ddof: int) -> Array:
    """[N]: standard deviation of `x` over each row's group; zero for equal members.

    `sqrt(Σ w·(x−mean)² / (Σ w − ddof))`, scaled so that rewards of 1e30 do not overflow.
    """
    centred = centre(x, ids, weight)
    scale = segment_max(jnp.abs(centred), ids)
    unit = centred / jnp.where(scale > 0, scale, 1)
    total = segment_total(weight * unit**2, ids)
    count = segment_total(weight, ids)
    return scale * jnp.sqrt(total / jnp.maximum(count - ddof, _tiny(weight)))


def _tiny(x: Array) -> float:
    return float(jnp.finfo(x.dtype).tiny)


def running_sum(x: Array, *, reverse: bool = False) -> Array:
    """f32[N,T]: Σ_{s≤t} x_s over each row, or Σ_{s≥t} x_s if reverse. Every `x` must be finite.

    >>> running_sum(jnp.array([[1.0, 2.0, 3.0]])).tolist()
    [[1.0, 3.0, 6.0]]
    """
    # Triangles of ones over blocks, then over the blocks' totals: `jnp.cumsum` takes many times
    # as long on CPU.
    rows, width = x.shape
    blocks = jnp.pad(x, ((0, 0), (0, -width % _BLOCK))).reshape(rows, -1, _BLOCK)

    def through(values: Array, distance: int) -> Array:
        size = values.shape[-1]
        ones = jnp.tri(size, size, -distance, dtype=values.dtype)  # column t: s ≥ t + distance
        return jnp.matmul(values, ones if reverse else ones.T, precision="highest")

    before = through(jnp.sum(blocks, axis=2), 1)
    return (through(blocks, 0) + before[..., None]).reshape(rows, -1)[:, :width]


def suffix_sum(x: Array, gamma: float | Array, mask: Array) -> Array:
    """[N,T]: discounted sums to the right, Σ_{s≥t} γ^{k(t,s)} x_s over masked-in tokens.

    `k` counts masked-in tokens, so an observation neither earns nor discounts: the running value
    is carried through it unchanged.
    """

    def step(carry: Array, column: tuple[Array, Array]) -> tuple[Array, Array]:
        value, counted = column
        carry = jnp.where(counted, value + gamma * carry, carry)
        return carry, carry

    columns = (jnp.where(mask, x, 0).T, mask.T)
    return jax.lax.scan(step, jnp.zeros_like(x[:, 0]), columns, reverse=True)[1].T


def uniform_by_identity(key: Array, ids: Array, width: int) -> Array:
    """f32[N,width] uniforms addressed by row id and position, whatever the batch around them."""

    def row(i: Array) -> Array:
        positions = jnp.arange(width)
        keys = jax.vmap(lambda t: jax.random.fold_in(jax.random.fold_in(key, i), t))(positions)
        return jax.vmap(jax.random.uniform)(keys)

    return jax.vmap(row)(ids)
