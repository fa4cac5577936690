"""The chunked head: columns of scored tokens from hidden states, a chunk of logits at a time.

Logits `[N,T,V]` are never built. Scored positions are compacted first, and a loop whose trip count
follows their number turns one chunk of hidden rows into logits `f32[C,V]`, hands them to the
columns' functions and forgets them. The backward pass computes each chunk's logits again, pulls
the cotangent through the functions, and adds to the gradient of hidden states and unembedding.
It is our own rule: JAX cannot reverse a loop whose length is only known at run time. Hence one
derivative of the columns exists, in reverse mode; second derivatives do not.

Letters: `M` flat positions (`N * T`), `C` rows of a chunk, `R` positions in the loop's order (`M`
rounded up to whole chunks), `V` vocabulary, `D` hidden size.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from polopt.columns import Column
from polopt.errors import PoloptError
from polopt.models.axes import FSDP
from polopt.models.spread import ambient, constrain, whole
from polopt.types import record

Columns = tuple[Column, ...]

CHUNK_BYTES = 2**23  # float32 logits of one chunk, all models together
MIN_ROWS = 128  # of a chunk, whatever that takes
BLOCK_BYTES = 2**22  # of the product that is added to the unembedding's gradient, on CPU


@record
class Head:
    """What one model brings: the states that predict, and the matrix that reads them."""

    hidden: Array  # [states,D]
    unembedding: Array  # [V,D]
    # The type in which they are multiplied; sums are at least float32.
    dtype: Any = dataclasses.field(metadata={"static": True})
    # Logits become cap * tanh(logits / cap).
    softcap: float | None = dataclasses.field(default=None, metadata={"static": True})
    # Whether only the states have a gradient: the other takes a product as large as the logits'.
    fixed_unembedding: bool = dataclasses.field(default=False, metadata={"static": True})
    # Of the ambient mesh, those that cut the vocabulary.
    axes: tuple[str, ...] = dataclasses.field(default=(), metadata={"static": True})


class Rows(NamedTuple):
    """Which positions are scored, in order, and what each needs."""

    position: Array  # i32[R] scored flat positions, ascending, then `M` as padding
    chunks: Array  # i32[] chunks that hold a scored position
    source: Array  # i32[M] the hidden row that predicts each position
    token: Array  # i32[M]
    temperature: Array  # f32[M]


def default_chunk(vocabulary: int, hidden: int, models: int = 1) -> int:
    """Rows of a chunk, so that the head's memory hardly depends on the vocabulary.

    As many as `CHUNK_BYTES` of float32 logits hold, but at least `MIN_ROWS` and at least a quarter
    of the hidden size `D`. A chunk's rows share one reading of the unembedding and of its gradient,
    so few rows starve a matrix unit; and `D / 4` rows of logits take a quarter of the float32
    gradient of the unembedding, which exists anyway.

    >>> [default_chunk(V, 256) for V in (8_192, 65_536)], default_chunk(131_072, 4_096)
    ([256, 128], 1024)
    """
    fitting = CHUNK_BYTES // (4 * vocabulary * models)
    return -(-max(MIN_ROWS, hidden // 4, fitting) // 8) * 8


def select_rows(scored: Array, token: Array, temperature: Array, source: Array, chunk: int) -> Rows:
    """Compact the scored positions.

    Args:
      scored: bool[N,T], False at t = 0.
      token: i32[N,T].
      temperature: f32[N].
      source: i32[N,T], the hidden row that predicts each position.
      chunk: rows of a chunk.

    Returns:
      Rows over the `M = N * T` flat positions.
    """
    N, T = scored.shape
    M = N * T
    everywhere = jnp.arange(M, dtype=jnp.int32)
    position = jnp.sort(jnp.where(scored.reshape(M), everywhere, M))
    count = jnp.sum(scored, dtype=jnp.int32)
    return Rows(
        position=jnp.pad(position, (0, -M % chunk), constant_values=M),
        chunks=_shared_bound((count + chunk - 1) // chunk),
        source=source.reshape(M),
        token=token.reshape(M),
        temperature=jnp.repeat(temperature, T),
    )


@jax.custom_batching.custom_vmap
def _shared_bound(chunks: Array) -> Array:
    """A loop bound that stays one number under vmap; a lane's surplus chunks are all padding."""
    return chunks


@_shared_bound.def_vmap
def _(size: int, batched: Any, chunks: Array) -> tuple[Array, bool]:
    return jnp.max(chunks), False


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def head_columns(
    columns: Columns, chunk: int, moving: dict[str, Head], fixed: dict[str, Head], rows: Rows
) -> dict[str, Any]:
    """The columns of every scored position; exactly zero elsewhere.

    Args:
      columns: what to compute of each chunk of logits.
      chunk: rows of a chunk.
      moving: models with a gradient.
      fixed: models without.
      rows: what to score.

    Returns:
      {column: pytree of [M, ...]}. Floating leaves are differentiable in `moving`.
    """

    heads = _cast({**moving, **fixed})

    def evaluate(i: Array) -> tuple[_Part, dict[str, Any]]:
        part = _Part.read(rows, i, chunk)
        return part, _evaluate(columns, part.logits(heads), part.token)

    def body(i: Array, out: dict[str, Any]) -> dict[str, Any]:
        part, new = evaluate(i)
        return jax.tree.map(part.write, out, new)

    M = rows.token.shape[0]
    shapes = jax.eval_shape(lambda: evaluate(jnp.int32(0))[1])
    _check_shapes(shapes, chunk)
    out = jax.tree.map(lambda leaf: jnp.zeros((M, *leaf.shape[1:]), leaf.dtype), shapes)
    return lax.fori_loop(0, rows.chunks, body, out)


def _forward(columns: Columns, chunk: int, moving: Any, fixed: Any, rows: Rows):
    return head_columns(columns, chunk, moving, fixed, rows), (moving, fixed, rows)


def _backward(columns: Columns, chunk: int, saved: Any, cotangent: dict[str, Any]):
    moving, fixed, rows = saved
    heads, others = _cast(moving), _cast(fixed)

    def body(i: Array, total: dict[str, Head]) -> dict[str, Head]:
        part = _Part.read(rows, i, chunk)
        constant = part.logits(others)

        def floats(products: dict[str, Array]) -> list[Array]:
            logits = part.finish(heads, products)
            return _float_leaves(_evaluate(columns, {**logits, **constant}, part.token))

        _, pull = jax.vjp(floats, part.products(heads))
        (change,) = pull([part.take(leaf) for leaf in _float_leaves(cotangent)])
        return {name: part.add(total[name], heads[name], change[name]) for name in heads}

    def zero(head: Head) -> Head:
        unembedding = jnp.zeros(head.unembedding.shape, _wide(head.unembedding.dtype))
        unembedding = constrain(unembedding, head.axes)
        hidden = jnp.zeros_like(head.hidden)
        return dataclasses.replace(
            head,
            hidden=constrain(hidden, FSDP) if FSDP in head.axes else hidden,
            # None is how a rule tells JAX that there is no gradient.
            unembedding=None if head.fixed_unembedding else unembedding,
        )

    zeros = {name: zero(head) for name, head in moving.items()}
    total = lax.fori_loop(0, rows.chunks, body, zeros)
    return {name: _narrow(total[name], head) for name, head in moving.items()}, None, None


head_columns.defvjp(_forward, _backward)


def _evaluate(columns: Columns, logits: dict[str, Array], token: Array) -> dict[str, Any]:
    return {
        column.name: column.fn(
            {model: logits[model] for model in column.models}, token, *column.settings
        )
        for column in columns
    }


def _check_shapes(columns: dict[str, Any], chunk: int) -> None:
    for name, column in columns.items():
        for leaf in jax.tree.leaves(column):
            if leaf.shape[:1] != (chunk,):
                raise PoloptError(
                    f"score: column {name} gave shape {leaf.shape} for a chunk of {chunk} "
                    "positions; give one entry per position, [C] or [C,K]"
                )


def _float_leaves(tree: Any) -> list[Array]:
    """The leaves that carry a gradient: ids of tokens do not (their cotangents are float0)."""
    leaves = jax.tree.leaves(tree)
    return [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]


def _wide(dtype: Any) -> Any:
    """float32, or float64 for float64."""
    return jnp.promote_types(dtype, jnp.float32)


def _narrow(gradient: Head, head: Head) -> Head:
    """A gradient in the types of what it is of."""
    of = {**vars(head), "unembedding": None} if head.fixed_unembedding else vars(head)
    return jax.tree.map(lambda x, like: x.astype(like.dtype), gradient, Head(**of))


def _cast(heads: dict[str, Head]) -> dict[str, Head]:
    """The unembeddings in the type of the product, once and not in every chunk."""
    return {
        name: dataclasses.replace(head, unembedding=head.unembedding.astype(head.dtype))
        for name, head in heads.items()
    }


class _Part(NamedTuple):
    """The rows of one chunk. Padding rows read zeros and are never written."""

    position: Array  # i32[C], `M` on padding
    source: Array  # i32[C]
    token: Array  # i32[C]
    temperature: Array  # f32[C,1], one on padding
    live: Array  # bool[C,1]

    @classmethod
    def read(cls, rows: Rows, i: Array, chunk: int) -> _Part:
        position = lax.dynamic_slice_in_dim(rows.position, i * chunk, chunk)
        live = position < rows.token.shape[0]
        at = jnp.where(live, position, 0)
        return cls(
            position=position,
            source=rows.source[at],
            token=rows.token[at],
            temperature=jnp.where(live, rows.temperature[at], 1)[:, None],
            live=live[:, None],
        )

    def states(self, head: Head) -> Array:
        """[C,D] over the temperature: `D` divisions in place of `V`, and before any rounding.

        Under a cap the temperature comes after it.
        """
        states = jnp.where(self.live, head.hidden[self.source], 0)
        return whole(self._cooled(states, head).astype(head.dtype))

    def products(self, heads: dict[str, Head]) -> dict[str, Array]:
        """{model: [C,V]} of states and unembedding, in float32 (float64 for float64)."""
        made = {
            name: _product("cd,vd->cv", self.states(head), head.unembedding)
            for name, head in heads.items()
        }
        return {name: constrain(x, None, heads[name].axes) for name, x in made.items()}

    def finish(self, heads: dict[str, Head], products: dict[str, Array]) -> dict[str, Array]:
        """Logits divided by the temperature: the products themselves, where there is no cap."""
        capped = dict(products)
        for name, head in heads.items():
            if head.softcap is not None:
                cap = jnp.asarray(head.softcap, products[name].dtype)
                capped[name] = cap * jnp.tanh(products[name] / cap) / self.temperature
        return capped

    def logits(self, heads: dict[str, Head]) -> dict[str, Array]:
        """{model: [C,V]} divided by the temperature."""
        return self.finish(heads, self.products(heads))

    def take(self, column: Array) -> Array:
        """[C, ...] of [M, ...]; zero on padding."""
        return column.at[self.position].get(mode="fill", fill_value=0)

    def write(self, column: Array, new: Array) -> Array:
        return column.at[self.position].set(new, mode="drop", indices_are_sorted=True)

    def add(self, total: Head, head: Head, change: Array) -> Head:
        """Add what the chunk's `change [C,V]` of the products makes of the gradient."""
        change = constrain(jnp.where(self.live, change, 0).astype(head.dtype), None, head.axes)
        hidden = self._cooled(_product("cv,vd->cd", change, head.unembedding), head)
        source = jnp.where(self.live[:, 0], self.source, total.hidden.shape[0])
        hidden = total.hidden.at[source].add(hidden.astype(total.hidden.dtype), mode="drop")
        total = dataclasses.replace(total, hidden=hidden)
        if head.fixed_unembedding:
            return total
        parts = total.unembedding, change, self.states(head)
        if ambient():  # a block of rows is no part of a device's
            unembedding = constrain(_add_product(*parts), head.axes)
        else:
            unembedding = lax.platform_dependent(*parts, cpu=_add_in_blocks, default=_add_product)
        return dataclasses.replace(total, unembedding=unembedding)

    def _cooled(self, states: Array, head: Head) -> Array:
        wide = _wide(states.dtype)
        if head.softcap is not None:
            return states.astype(wide)
        return states.astype(wide) / self.temperature.astype(wide)


def _product(equation: str, a: Array, b: Array) -> Array:
    return jnp.einsum(equation, a, b, preferred_element_type=_wide(b.dtype))


def _add_product(total: Array, change: Array, states: Array) -> Array:
    """total [V,D] + changeᵀ states."""
    return total + _product("cv,cd->vd", change, states)


def _add_in_blocks(total: Array, change: Array, states: Array) -> Array:
    """The same where the compiler cannot accumulate in place: the product is never [V,D] large."""
    V, D = total.shape
    block = min(V, max(1, BLOCK_BYTES // (4 * D)))

    def step(i: Array, total: Array) -> Array:
        start = i * block
        part = lax.dynamic_slice_in_dim(total, start, block)
        part = _add_product(part, lax.dynamic_slice_in_dim(change, start, block, axis=1), states)
        return lax.dynamic_update_slice_in_dim(total, part, start, 0)

    total = lax.fori_loop(0, V // block, step, total)
    rest = V // block * block
    return total.at[rest:].set(_add_product(total[rest:], change[:, rest:], states))
