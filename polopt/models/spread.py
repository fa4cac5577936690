"""Activations under a device mesh: which of their dimensions are cut, and attention by heads.

The mesh is JAX's ambient one (`jax.set_mesh`). Without one nothing here does anything, so that the
same code runs on one device, inside `pmap` and on a mesh. A dimension that its axes do not divide
stays whole, which changes no number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import Array
from jax.sharding import AxisType, PartitionSpec

from polopt.models.axes import DATA, FSDP, SEQUENCE, TENSOR

ROWS = (DATA, FSDP)
"""The axes that rows are dealt over: what is cut along "fsdp" is gathered where it is used."""


def constrain(x: Array, *axes: str | Sequence[str] | None) -> Array:
    """`x` with its first dimensions cut along these axes of the ambient mesh, the rest whole."""
    sizes = ambient()
    if not sizes:
        return x
    spec = (_fitting(sizes, wanted, size) for wanted, size in zip(axes, x.shape, strict=False))
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*(cut or None for cut in spec)))


def whole(tree: Any) -> Any:
    """Arrays of which every device of the ambient mesh has a copy."""
    return jax.tree.map(constrain, tree)


def ambient() -> dict[str, int]:
    """Axes of the ambient mesh that are longer than one, but for those of a mapped function."""
    mesh = jax.sharding.get_abstract_mesh()
    types = zip(mesh.axis_names, mesh.axis_types, strict=True) if not mesh.empty else ()
    return {
        name: mesh.shape[name]
        for name, kind in types
        if kind == AxisType.Auto and mesh.shape[name] > 1
    }


def gathered_blocks(vocabulary: int, blocks: int) -> int:
    """How many neighbours among equal blocks of rows share a head: as many as lie along "fsdp".

    Each of them then has its part of the vocabulary, for the rows of all, and sums a gradient of
    that part. With rows of its own alone it would sum one of the whole matrix. A vocabulary that
    "tensor" and "fsdp" together do not divide stays whole along "fsdp".
    """
    sizes = ambient()
    ways = sizes.get(FSDP, 1)
    return ways if _fitting(sizes, (TENSOR, FSDP), vocabulary) and blocks % ways == 0 else 1


def on_heads(x: Array) -> Array:
    """Keys or values `[rows,K,positions,d]`, cut by rows and by heads."""
    return constrain(x, ROWS, head_axes(ambient(), x.shape[1]))


def whole_rows(x: Array, heads: int) -> Array:
    """Queries, keys or values `[rows,positions,H,d]`, whole along positions and cut by heads.

    Args:
      heads: K, of the keys.
    """
    return constrain(x, ROWS, None, head_axes(ambient(), heads))


def head_axes(sizes: dict[str, int], heads: int) -> tuple[str, ...]:
    """The axes that key heads are cut along.

    Positions are cut along "sequence" everywhere but in attention, which sees all of them: there
    the axis cuts heads instead (2309.14509).
    """
    both = _fitting(sizes, (TENSOR, SEQUENCE), heads)
    return both or _fitting(sizes, TENSOR, heads)


def by_heads(
    attend: Callable[..., Array], *args: Any, rows: int, heads: int, opaque: bool = False
) -> Array:
    """An attention `attend(*args) -> [N,T,H,d]`, whose devices have rows and heads of their own.

    Written out, as the compiler would gather what it cannot follow through reshapes.

    Args:
      attend: the function.
      args: trees of arrays with rows in front; queries [N,T,H,d] are the first, and others of
        four dimensions [rows,K,S,d] have heads second. A single row stands for all.
      rows: the fewest rows of an array that has its own; it divides those of the others.
      heads: K.
      opaque: it has kernels, which the compiler can neither cut nor look into.
    """
    sizes = ambient()
    by_row = _fitting(sizes, ROWS, rows) or None
    by_head = head_axes(sizes, heads) or None
    if by_row is None and by_head is None and not (opaque and sizes):
        return attend(*args)

    def spec(x: Array) -> PartitionSpec:
        row = by_row if x.shape[0] > 1 else None
        return PartitionSpec(row, by_head) if x.ndim == 4 else PartitionSpec(row)

    queries = PartitionSpec(by_row, None, by_head)
    specs = (queries, *(jax.tree.map(spec, other) for other in args[1:]))
    how = {"in_specs": specs, "out_specs": queries, "check_vma": not opaque}
    return jax.shard_map(attend, **how)(*args)


def by_tokens(apply: Callable[..., Array], tokens: Any, whole: Any) -> Array:
    """`apply(tokens, whole) -> [B,T, ...]`, each device on tokens of its own.

    For what looks at its tokens together without need, as sorting them by expert does. Axes that
    cut no tokens are left to the compiler.

    Args:
      apply: the function.
      tokens: tree of [B,T, ...].
      whole: tree that every device needs.
    """
    sizes, (rows, positions) = ambient(), jax.tree.leaves(tokens)[0].shape[:2]
    by_row, by_position = _fitting(sizes, ROWS, rows), _fitting(sizes, SEQUENCE, positions)
    if not by_row + by_position:
        return apply(tokens, whole)
    cut = PartitionSpec(by_row or None, by_position or None)
    names = {*by_row, *by_position}
    specs = (cut, PartitionSpec())
    return jax.shard_map(apply, in_specs=specs, out_specs=cut, axis_names=names)(tokens, whole)


def _fitting(sizes: dict[str, int], axes: str | Sequence[str] | None, size: int) -> tuple[str, ...]:
    """Those of the axes that there are, if together they divide a dimension; else none."""
    asked = (axes,) if isinstance(axes, str) else axes or ()
    there = tuple(axis for axis in asked if axis in sizes)
    return there if size % math.prod(sizes[axis] for axis in there) == 0 else ()
