"""Names for the dimensions of parameters, and the one table from names to axes of a device mesh.

What a dimension is follows from where its leaf lies: `layers/3/mlp/up/kernel` maps from "embed" to
"mlp", whatever stands before it. So one rule serves parameters, gradients, an optimiser's moments,
averages and references, of every family, with adapters or quantised.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

from jax.sharding import PartitionSpec

from polopt.errors import PoloptError

DATA, FSDP, TENSOR, SEQUENCE = MESH_AXES = ("data", "fsdp", "tensor", "sequence")

Table = Mapping[str, str | tuple[str, ...] | None]

TABLE: Table = {
    "vocab": TENSOR,
    "embed": FSDP,
    "heads": TENSOR,
    "kv_heads": TENSOR,
    "mlp": TENSOR,
    "experts": None,  # each device has a share of every expert, so that none waits for another
    "rank": None,
    "blocks": None,
}
"""Which axis of the mesh each name is cut along; None keeps it whole."""

# From what and to what linear maps go; "heads" and "kv_heads" are as long as all heads together.
_LINEAR = {
    "attention/q": ("embed", "heads"),
    "attention/k": ("embed", "kv_heads"),
    "attention/v": ("embed", "kv_heads"),
    "attention/out": ("heads", "embed"),
    "mlp/gate": ("embed", "mlp"),
    "mlp/up": ("embed", "mlp"),
    "mlp/down": ("mlp", "embed"),
    "experts/router": ("embed", "experts"),
}
_LEAVES = {
    "embed/embedding": ("vocab", "embed"),
    "unembed/embedding": ("vocab", "embed"),
    "experts/gate": ("experts", "embed", "mlp"),
    "experts/up": ("experts", "embed", "mlp"),
    "experts/down": ("experts", "mlp", "embed"),
}
for _path, (_from, _to) in _LINEAR.items():
    _LEAVES |= {
        f"{_path}/kernel": (_from, _to),
        f"{_path}/bias": (_to,),
        f"{_path}/kernel_lora_a": (_from, "rank"),
        f"{_path}/kernel_lora_b": ("rank", _to),
        f"{_path}/kernel/array/qvalue": (_from, _to),
        f"{_path}/kernel/array/scale": ("blocks", _to),
    }
_LONGEST = max(name.count("/") + 1 for name in _LEAVES)


@functools.lru_cache(maxsize=4096)
def axes_of(path: str) -> tuple[str, ...] | None:
    """Names of the dimensions of a leaf; None for one that no name is known for.

    Those are norms, counters and the memories of pieces, which are small, and what belongs to
    models that are not ours: they are kept whole on every device.

    >>> axes_of("opt_state/1/0/mu/policy/layers/3/mlp/up/kernel")
    ('embed', 'mlp')
    """
    parts = path.split("/")
    for size in range(min(_LONGEST, len(parts)), 1, -1):
        if (found := _LEAVES.get("/".join(parts[-size:]))) is not None:
            return found
    return None


def spec_of(
    path: str, shape: tuple[int, ...], sizes: Mapping[str, int], table: Table = TABLE
) -> PartitionSpec:
    """How a leaf is cut over a mesh.

    Args:
      path: of the leaf, with slashes.
      shape: of the leaf. If it has another rank than the parameter of that name (factored moments),
        it is kept whole.
      sizes: of the mesh, by axis.
      table: from names to axes.

    Raises:
      PoloptError: two dimensions on one axis, or one that its axis does not divide.

    >>> cut = spec_of("embed/embedding", (64, 16), {"fsdp": 2, "tensor": 1})
    >>> cut == PartitionSpec(None, "fsdp")
    True
    """
    names = axes_of(path)
    if names is None or len(names) != len(shape):
        return PartitionSpec()
    asked = [axes_on(table[name]) for name in names]
    _check_collision(path, names, [axis for axes in asked for axis in axes])
    cut = []
    for name, size, axes in zip(names, shape, asked, strict=True):
        axes = tuple(axis for axis in axes if sizes[axis] > 1)
        if size % math.prod(sizes[axis] for axis in axes):
            over = " x ".join(f"{axis}={sizes[axis]}" for axis in axes)
            raise PoloptError(
                f"mesh: {over} does not divide the {size} of {name!r} in {path} {list(shape)}: "
                "give a size that does"
            )
        cut.append(axes[0] if len(axes) == 1 else axes or None)
    return PartitionSpec(*cut)


def axes_on(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The axes that an entry of a table or of a `PartitionSpec` names."""
    return (entry,) if isinstance(entry, str) else entry or ()


def _check_collision(path: str, names: tuple[str, ...], axes: list[str]) -> None:
    twice = [axis for axis in MESH_AXES if axes.count(axis) > 1]
    if twice:
        raise PoloptError(
            f"mesh: the dimensions {', '.join(names)} of {path} would lie on the axis {twice[0]!r} "
            "twice: a parameter is cut along an axis once"
        )
