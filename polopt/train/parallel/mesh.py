"""Several devices of which each has a part of the state: `jit` with shardings over a mesh.

Axes: "data" and "fsdp" deal rows, and "fsdp" cuts parameters, which are gathered where they are
used; "tensor" cuts heads, MLPs and the vocabulary; "sequence" cuts positions. What is cut along
which is the one table of `polopt.models.axes`; optimiser state follows its parameters. The compiled
functions have global semantics, and XLA puts in what devices must tell each other. Devices may be
those of several processes: these then run one program, and none can compute without the others.

Everything here works on shapes alone, and for devices that are not there: `abstract` and `lower`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.mesh_utils import create_device_mesh
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from polopt.compiler import kept_barriers
from polopt.errors import PoloptError, UsageError
from polopt.models.axes import MESH_AXES, SEQUENCE, TENSOR, spec_of
from polopt.models.config import DecoderConfig
from polopt.models.spread import ROWS
from polopt.processes import ALONE, Processes


@dataclasses.dataclass(frozen=True)
class Sharded:
    """A mesh of devices with the axes of `polopt.models.axes`; see `Parallel`."""

    mesh: Mesh
    axis: None = None
    processes: Processes = ALONE

    @property
    def devices(self) -> int:
        """Of the mesh."""
        return self.mesh.size

    @property
    def platform(self) -> str:
        """Of the mesh, whose devices may be elsewhere."""
        return self.mesh.devices.flat[0].platform

    @property
    def local(self) -> Sharded:
        """This one."""
        return self

    @property
    def parts(self) -> int:
        """One for each place along "data" and "fsdp"."""
        return row_parts(self.mesh.shape)

    @property
    def shards(self) -> int:
        """All parts: functions see whole arrays."""
        return self.parts

    def check(self, config: DecoderConfig, params: Any) -> None:
        """See `Parallel`."""
        self.shardings(params)
        sizes = self.mesh.shape
        ways = sizes[TENSOR] * sizes[SEQUENCE]
        if sizes[SEQUENCE] > 1 and config.num_kv_heads % ways:
            raise PoloptError(
                f"mesh: sequence={sizes[SEQUENCE]} x tensor={sizes[TENSOR]} deal the key heads to "
                f"{ways} devices, and the model has {config.num_kv_heads}: give a product that "
                "divides them"
            )

    @contextlib.contextmanager
    def loading(self) -> Iterator[None]:
        """On the host.

        Raises:
          PoloptError: JAX may not use it.
        """
        try:
            host = jax.local_devices(backend="cpu")[0]
        except RuntimeError as error:
            raise PoloptError(
                "mesh: models are read on the host, and JAX_PLATFORMS leaves it out: add ,cpu to it"
            ) from error
        with jax.default_device(host):
            yield

    def shardings(self, tree: Any) -> Any:
        """Where each leaf of parameters, or of what is shaped and named like them, lies.

        Raises:
          PoloptError: one that the mesh cannot cut.
        """

        def sharding(path: Any, leaf: Any) -> NamedSharding:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            return NamedSharding(self.mesh, spec_of(name, np.shape(leaf), self.mesh.shape))

        return jax.tree_util.tree_map_with_path(sharding, tree)

    def place(self, tree: Any) -> Any:
        """Each leaf cut as its name says."""
        # Copied, even where it lies there already: what is placed may be donated.
        return put(tree, self.shardings(tree), may_alias=False)

    def build(self, make: Callable[..., Any], *args: Any) -> Any:
        """Made of what is placed, so that no device has more than its part at any time."""
        args = self.place(args)
        where = self.shardings(jax.eval_shape(make, *args))
        with self.ambient():
            return jax.jit(make, out_shardings=where)(*args)

    def single(self, tree: Any) -> Any:
        """The tree itself: arrays are whole to whoever reads them."""
        return tree

    def abstract(self, tree: Any) -> Any:
        """Shapes, types, and where each leaf lies."""
        return _shapes(tree, self.shardings(tree))

    def step(self, update: Callable[..., Any]) -> Callable[..., Any]:
        """See `Parallel`."""

        def where(state: Any, *_: Any) -> Any:
            return self.shardings(state), self._whole

        return Compiled(self, update, where, placed=2, donate_argnums=0)

    def rows(self, fn: Callable[..., Any], *, dealt: int) -> Callable[..., Any]:
        """See `Parallel`; what comes out is small, and whole on every device."""
        return Compiled(self, fn, lambda *_: self._whole, placed=1)

    @contextlib.contextmanager
    def ambient(self) -> Iterator[None]:
        """The mesh as JAX's own, which models look at (`polopt.models.spread`)."""
        with jax.set_mesh(self.mesh):
            yield

    def dealt(self, tree: Any) -> Any:
        """Where arrays of rows lie: those whose first dimension divides are cut along it."""
        by_row = NamedSharding(self.mesh, PartitionSpec(ROWS))

        def sharding(leaf: Any) -> NamedSharding:
            shape = np.shape(leaf)
            return by_row if shape and shape[0] % self.parts == 0 else self._whole

        return jax.tree.map(sharding, tree)

    @property
    def _whole(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())


class Compiled:
    """A function on a mesh: its first arguments are placed already, the others are dealt."""

    def __init__(
        self,
        form: Sharded,
        fn: Callable[..., Any],
        where: Callable[..., Any],
        *,
        placed: int,
        **how: Any,
    ) -> None:
        """Compile nothing yet.

        Args:
          where: `where(*args)` are the shardings of what comes out; the same for all calls.
          placed: number of arguments that are placed.
          how: to be compiled, as `jax.jit` is told.
        """
        self._form, self._fn, self._where = form, fn, where
        self._placed, self._how, self._jitted = placed, how, None

    def __call__(self, *args: Any) -> Any:
        """Call it."""
        first, rest = args[: self._placed], args[self._placed :]
        rest = put(rest, self._form.dealt(rest))
        with self._form.ambient():
            return self._jit(args)(*first, *rest)

    def lower(self, *args: Any) -> Any:
        """The same of arrays that need not exist, lowered (`jax.stages.Lowered`).

        Args:
          args: arrays or `jax.ShapeDtypeStruct`; the placed ones as `Sharded.abstract` makes them.
        """
        first, rest = args[: self._placed], args[self._placed :]
        rest = _shapes(rest, self._form.dealt(rest))
        with self._form.ambient():
            return self._jit(args).lower(*first, *rest)

    def _jit(self, args: tuple[Any, ...]) -> Any:
        if self._jitted is None:
            options = kept_barriers(self._form.mesh.devices.flat[0].platform)
            where = self._where(*args)
            self._jitted = jax.jit(
                self._fn, out_shardings=where, compiler_options=options, **self._how
            )
        return self._jitted


def put(tree: Any, shardings: Any, **how: Any) -> Any:
    """`jax.device_put`; of several processes, each gives its devices their parts.

    All of them have the same values, which is not looked at: JAX would send them round to see.
    """
    if all(sharding.is_fully_addressable for sharding in jax.tree.leaves(shardings)):
        return jax.device_put(tree, shardings, **how)

    def one(x: Any, sharding: NamedSharding) -> jax.Array:
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            return jax.device_put(x, sharding, **how)
        is_key = isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        here = x if is_key else np.asarray(x)
        return jax.make_array_from_callback(here.shape, sharding, lambda part: here[part])

    return jax.tree.map(one, tree, shardings)


def _shapes(tree: Any, shardings: Any) -> Any:
    """`jax.ShapeDtypeStruct` of arrays, or of what stands for them, that lie so."""

    def shape(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(shape, jax.eval_shape(lambda x: x, tree), shardings)


def read_sizes(items: Sequence[str], option: str = "mesh") -> dict[str, int]:
    """Sizes of a mesh, as `("data=2", "fsdp=-1")`; axes that are not named have size 1.

    Complaints name the `option`.

    >>> read_sizes(("fsdp=-1", "tensor=2"))
    {'data': 1, 'fsdp': -1, 'tensor': 2, 'sequence': 1}

    Raises:
      UsageError: an unknown axis, one that is named twice, no size, or more than one that is -1.
    """
    sizes: dict[str, int] = {}
    for item in items:
        name, _, text = item.partition("=")
        if name not in MESH_AXES or name in sizes:
            again = "is given twice" if name in sizes else "is no axis"
            raise UsageError(f"{option}: {name!r} {again}: accepted are {', '.join(MESH_AXES)}")
        digits = text.removeprefix("-")
        if not (digits.isascii() and digits.isdigit() and (int(text) >= 1 or int(text) == -1)):
            raise UsageError(
                f"{option}: {item!r} is no size: accepted are {name}=1 and up, and {name}=-1 for "
                "all devices that the others leave"
            )
        sizes[name] = int(text)
    if list(sizes.values()).count(-1) > 1:
        raise UsageError(f"{option}: more than one axis is -1, and only one can have what is left")
    return {name: sizes.get(name, 1) for name in MESH_AXES}


def row_parts(sizes: Mapping[str, int]) -> int:
    """Parts that rows are dealt to on a mesh of these sizes."""
    return math.prod(sizes[axis] for axis in ROWS)


def fill_sizes(sizes: Mapping[str, int], devices: int, option: str = "mesh") -> dict[str, int]:
    """The sizes for so many devices, with a number in place of -1.

    Args:
      sizes: of all axes, as `read_sizes` gives them.
      devices: as many as the sizes multiply to.
      option: that a complaint names.

    Raises:
      PoloptError: more or fewer devices than that.
    """
    known = math.prod(size for size in sizes.values() if size > 0)
    filled = {name: devices // known if size == -1 else size for name, size in sizes.items()}
    if math.prod(filled.values()) != devices:
        asked = " x ".join(f"{name}={size}" for name, size in sizes.items() if size != 1)
        raise PoloptError(
            f"{option}: {asked or 'one device'} does not make {devices} devices: give sizes "
            "whose product that is (one may be -1), or other devices (--devices)"
        )
    return filled


def make_mesh(sizes: Mapping[str, int], devices: Sequence[Any], option: str = "mesh") -> Mesh:
    """A mesh over all of `devices`, which may be of a topology that is not here.

    Args:
      sizes: of all axes, as `read_sizes` gives them.
      devices: as many as the sizes multiply to.
      option: that a complaint names.

    Raises:
      PoloptError: more or fewer devices than that.
    """
    filled = fill_sizes(sizes, len(devices), option)
    shape = tuple(filled[name] for name in MESH_AXES)
    # In the order of the axes: the last ones talk most, and get the neighbours.
    placed = create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(placed, MESH_AXES, axis_types=(AxisType.Auto,) * len(shape))
