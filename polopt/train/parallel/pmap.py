"""Several devices with a copy of the state on each, by `pmap`.

What is placed has a leading axis of this process's devices, rows are dealt, and everything else is
broadcast. Of several processes each computes with its own devices by itself; only an optimiser
step, whose sums go over the devices of all, is one program for all of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from polopt.models.config import DecoderConfig
from polopt.processes import ALONE, Processes

AXIS = "data"


@dataclasses.dataclass(frozen=True)
class Pmap:
    """So many devices of each process, unless it is said `where`; see `Parallel`."""

    each: int
    processes: Processes = ALONE
    shards: int = 1
    axis: str = AXIS
    where: tuple[Any, ...] | None = None  # may be of a topology that is not here: `lower`

    @property
    def platform(self) -> str:
        """Of the local devices."""
        return jax.default_backend()

    @property
    def devices(self) -> int:
        """Those of all processes."""
        return self.each * self.processes.count

    @property
    def parts(self) -> int:
        """One to a device."""
        return self.devices

    @property
    def local(self) -> Pmap:
        """The same of this process alone."""
        return Pmap(self.each)

    def check(self, config: DecoderConfig, params: Any) -> None:
        """Nothing to refuse: what does not fit a device, its own message says."""

    def loading(self) -> AbstractContextManager[Any]:
        """Straight to the first device, which has a copy anyway."""
        return contextlib.nullcontext()

    def place(self, tree: Any) -> Any:
        """Put a copy on every device."""
        if not jax.tree.leaves(tree):  # which pmap refuses in a run of several processes
            return tree
        return _copier(tuple(self._here()))(tree, np.arange(self.each))

    def build(self, make: Callable[..., Any], *args: Any) -> Any:
        """Made once, and copied."""
        return self.place(make(*args))

    def single(self, tree: Any) -> Any:
        """The first device's copy."""
        # Not x[0]: that is a program of all devices, whose parts wait for one another.
        return jax.tree.map(lambda x: x.addressable_data(0)[0], tree)

    def abstract(self, tree: Any) -> Any:
        """The tree, whose shapes and types are read: of one copy."""
        return tree

    def step(self, update: Callable[..., Any]) -> Callable[..., Any]:
        """See `Parallel`."""

        def once(out: tuple[Any, Any]) -> tuple[Any, Any]:
            state, info = out
            return state, self.single(info)

        where = self.where or self._everywhere()
        return Mapped(self, update, once, where, placed=2, dealt=2, donate_argnums=0)

    def rows(self, fn: Callable[..., Any], *, dealt: int) -> Callable[..., Any]:
        """See `Parallel`; each process computes its share, and all get everything."""

        def joined(out: Any) -> Any:
            return self._gathered(jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), out))

        return Mapped(self, fn, joined, self.where or self._here(), placed=1, dealt=dealt)

    def ambient(self) -> AbstractContextManager[Any]:
        """Nothing: the mapped functions know their devices."""
        return contextlib.nullcontext()

    def deal(self, tree: Any) -> Any:
        """This process's share of rows `[R, ...]`, as `[each, R / devices, ...]`."""

        def dealt(x: Any) -> Any:
            own = x[self.processes.share(len(x))]
            return jnp.reshape(own, (self.each, -1, *own.shape[1:]))

        return jax.tree.map(dealt, tree)

    def _gathered(self, own: Any) -> Any:
        """The rows of all processes, in their order."""
        if self.processes.count == 1:
            return own
        shares = self.processes.gather(jax.device_get(own))
        return jax.tree.map(lambda *parts: np.concatenate(parts), *shares)

    def _here(self) -> list[Any]:
        return jax.local_devices()[: self.each]

    def _everywhere(self) -> list[Any]:
        """The devices of all processes, in their order."""
        return self._here() if self.processes.count == 1 else of_all(self.each, self.processes)


def of_all(each: int, processes: Processes) -> list[Any]:
    """So many devices of each process, in the order of the processes."""
    return [device for p in range(processes.count) for device in jax.local_devices(p)[:each]]


class Mapped:
    """A function on all devices: its first arguments are placed already, the last are dealt."""

    def __init__(
        self,
        form: Pmap,
        fn: Callable[..., Any],
        finish: Callable[[Any], Any],
        where: Sequence[Any],
        *,
        placed: int,
        dealt: int,
        **how: Any,
    ) -> None:
        """Compile nothing yet.

        Args:
          finish: makes what is given back of the results, which have a device axis.
          where: devices.
          placed: number of arguments that are placed; as many follow that all devices get.
          dealt: number of those that are dealt; the last may be left out, and are None.
          how: to be compiled, as `jax.pmap` is told.
        """
        self._form, self._finish, self._placed, self._dealt = form, finish, placed, dealt
        in_axes = (0,) * placed + (None,) * placed + (0,) * dealt
        self._mapped = jax.pmap(fn, axis_name=AXIS, in_axes=in_axes, devices=where, **how)

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
            return jax.ShapeDtypeStruct((self._form.each, *leaf.shape), leaf.dtype)

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
