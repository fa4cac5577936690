"""Several devices of one host with a copy of the state on each, by `pmap`.

What is placed has a leading device axis, rows are dealt, and everything else is broadcast.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from polopt.models.config import DecoderConfig

AXIS = "data"


@dataclasses.dataclass(frozen=True)
class Pmap:
    """So many devices, local ones if it is not said `where`; see `Parallel`."""

    devices: int
    shards: int = 1
    axis: str = AXIS
    where: tuple[Any, ...] | None = None  # may be of a topology that is not here: `lower`

    @property
    def platform(self) -> str:
        """Of the local devices."""
        return jax.default_backend()

    @property
    def parts(self) -> int:
        """One to a device."""
        return self.devices

    def check(self, config: DecoderConfig, params: Any) -> None:
        """Nothing to refuse: what does not fit a device, its own message says."""

    def loading(self) -> AbstractContextManager[Any]:
        """Straight to the first device, which has a copy anyway."""
        return contextlib.nullcontext()

    def place(self, tree: Any) -> Any:
        """Put a copy on every device."""
        return _copier(tuple(self.local))(tree, np.arange(self.devices))

    def build(self, make: Callable[..., Any], *args: Any) -> Any:
        """Made once, and copied."""
        return self.place(make(*args))

    def single(self, tree: Any) -> Any:
        """The first device's copy."""
        return jax.tree.map(lambda x: x[0], tree)

    def abstract(self, tree: Any) -> Any:
        """The tree, whose shapes and types are read: of one copy."""
        return tree

    def step(self, update: Callable[..., Any]) -> Callable[..., Any]:
        """See `Parallel`."""

        def once(out: tuple[Any, Any]) -> tuple[Any, Any]:
            state, info = out
            return state, self.single(info)

        return Mapped(self, update, once, placed=2, dealt=2, donate_argnums=0)

    def rows(self, fn: Callable[..., Any], *, dealt: int) -> Callable[..., Any]:
        """See `Parallel`."""

        def joined(out: Any) -> Any:
            return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), out)

        return Mapped(self, fn, joined, placed=1, dealt=dealt)

    def ambient(self) -> AbstractContextManager[Any]:
        """Nothing: the mapped functions know their devices."""
        return contextlib.nullcontext()

    def deal(self, tree: Any) -> Any:
        """Rows `[R, ...]` as equal parts `[devices, R / devices, ...]`."""
        return jax.tree.map(lambda x: jnp.reshape(x, (self.devices, -1, *x.shape[1:])), tree)

    @property
    def local(self) -> list[Any]:
        """So many devices of this host."""
        return jax.local_devices()[: self.devices]


class Mapped:
    """A function on all devices: its first arguments are placed already, the last are dealt."""

    def __init__(
        self,
        form: Pmap,
        fn: Callable[..., Any],
        finish: Callable[[Any], Any],
        *,
        placed: int,
        dealt: int,
        **how: Any,
    ) -> None:
        """Compile nothing yet.

        Args:
          finish: makes what is given back of the results, which have a device axis.
          placed: number of arguments that are placed; as many follow that all devices get.
          dealt: number of those that are dealt; the last may be left out, and are None.
          how: to be compiled, as `jax.pmap` is told.
        """
        self._form, self._finish, self._placed, self._dealt = form, finish, placed, dealt
        in_axes = (0,) * placed + (None,) * placed + (0,) * dealt
        self._mapped = jax.pmap(
            fn, axis_name=AXIS, in_axes=in_axes, devices=form.where or form.local, **how
        )

    def __call__(self, *args: Any) -> Any:
        """Call it."""
        placed, shared, rows = self._parts(args)
        return self._finish(self._mapped(*placed, *shared, *self._form.deal(rows)))

    def lower(self, *args: Any) -> Any:
        """The same of arrays that need not exist, lowered (`jax.stages.Lowered`).

        Args:
          args: arrays or `jax.ShapeDtypeStruct`; of the placed ones, a single copy.
        """
        placed, shared, rows = self._parts(args)

        def copied(leaf: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((self._form.devices, *leaf.shape), leaf.dtype)

        rows = jax.eval_shape(self._form.deal, rows)
        return self._mapped.lower(*jax.tree.map(copied, placed), *shared, *rows)

    def _parts(self, args: tuple[Any, ...]) -> tuple[tuple[Any, ...], ...]:
        """Arguments that are placed, that all devices get, and that are dealt."""
        n = self._placed
        args += (None,) * (2 * n + self._dealt - len(args))
        return args[:n], args[n : 2 * n], args[2 * n :]


@functools.lru_cache(maxsize=8)
def _copier(devices: tuple[Any, ...]) -> Callable[..., Any]:
    """One for each set of devices: a new one would compile again at every call.

    The axis has the name that it has elsewhere: it is part of the type of what comes out.
    """
    return jax.pmap(lambda x, _: x, axis_name=AXIS, in_axes=(None, 0), devices=devices)
