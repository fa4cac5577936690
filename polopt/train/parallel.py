"""One device or several of one host: the same pure functions under `jit` or under `pmap`.

Under pmap the train state lives replicated with a leading device axis, rows are spread, and
everything else is broadcast. Algorithms, pieces and models do not know which is used.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from polopt.compiler import jit
from polopt.errors import PoloptError

AXIS = "data"


@dataclasses.dataclass(frozen=True)
class Parallel:
    """How to run over local devices. `axis` is None on one device without pmap."""

    devices: int = 1
    pmap: bool = False

    @property
    def axis(self) -> str | None:
        """The name of the device axis inside a mapped function."""
        return AXIS if self.pmap else None

    def replicate(self, tree: Any) -> Any:
        """Put a copy on every device."""
        if not self.pmap:
            return tree
        return _copier(tuple(self._devices()))(tree, np.arange(self.devices))

    def single(self, tree: Any) -> Any:
        """The first device's copy of what is replicated."""
        return jax.tree.map(lambda x: x[0], tree) if self.pmap else tree

    def step(self, update: Callable) -> Callable:
        """Compile `update(state, given, trajectories, prepared, rows, layout) -> (state, info)`.

        `state` and `given` are replicated, `state` is donated; `rows i32[R]` and the splits of
        `layout` are dealt to the devices.
        """
        if not self.pmap:
            return jit(update, donate_argnums=0)
        mapped = jax.pmap(
            update,
            axis_name=AXIS,
            in_axes=(0, 0, None, None, 0, 0),
            donate_argnums=0,
            devices=self._devices(),
        )

        def run(
            state: Any,
            given: Any,
            trajectories: Any,
            prepared: Any,
            rows: np.ndarray,
            layout: Any = None,
        ) -> tuple[Any, Any]:
            rows, layout = self._deal((rows, layout))
            state, info = mapped(state, given, trajectories, prepared, rows, layout)
            return state, jax.tree.map(lambda x: x[0], info)

        return run

    def rows(self, fn: Callable, *, dealt: int) -> Callable:
        """Compile `fn(params, shared, *rows) -> tree of [R, ...]` over rows.

        `params` are as `replicate` returns them, `shared` is any tree and broadcast, the `dealt`
        others are trees with rows in front, as many as divide by the devices.
        """
        if not self.pmap:
            return jit(fn)
        mapped = jax.pmap(
            fn, axis_name=AXIS, in_axes=(0, None) + (0,) * dealt, devices=self._devices()
        )

        def run(params: Any, shared: Any, *rows: Any) -> Any:
            out = mapped(params, shared, *(self._deal(x) for x in rows))
            return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), out)

        return run

    def _deal(self, tree: Any) -> Any:
        return jax.tree.map(lambda x: jnp.reshape(x, (self.devices, -1, *x.shape[1:])), tree)

    def _devices(self) -> list[Any]:
        return jax.local_devices()[: self.devices]


@functools.lru_cache(maxsize=8)
def _copier(devices: tuple[Any, ...]) -> Callable:
    """One for each set of devices: a new one would compile again at every call.

    The axis has the name that it has elsewhere: it is part of the type of what comes out.
    """
    return jax.pmap(lambda x, _: x, axis_name=AXIS, in_axes=(None, 0), devices=devices)


def choose(kind: str, devices: int | None) -> Parallel:
    """The form that a configuration asks for: "auto" is jit on one device, pmap on several.

    Raises:
      PoloptError: more devices than there are, or jit on several.
    """
    there = jax.local_device_count()
    count = devices or (1 if kind == "jit" else there)
    if count > there:
        raise PoloptError(f"devices={count}, but this host has {there}")
    if kind == "jit" and count > 1:
        raise PoloptError(f"parallel=jit runs on one device, not {count}: use pmap or auto")
    return Parallel(count, pmap=kind == "pmap" or count > 1)
