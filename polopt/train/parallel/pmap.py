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
    """So many local devices; see `Parallel`."""

    devices: int
    shards: int = 1
    axis: str = AXIS

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
        return _copier(tuple(self._devices()))(tree, np.arange(self.devices))

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

    def rows(self, fn: Callable[..., Any], *, dealt: int) -> Callable[..., Any]:
        """See `Parallel`."""
        mapped = jax.pmap(
            fn, axis_name=AXIS, in_axes=(0, None) + (0,) * dealt, devices=self._devices()
        )

        def run(params: Any, shared: Any, *rows: Any) -> Any:
            out = mapped(params, shared, *(self._deal(x) for x in rows))
            return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), out)

        return run

    def ambient(self) -> AbstractContextManager[Any]:
        """Nothing: the mapped functions know their devices."""
        return contextlib.nullcontext()

    def _deal(self, tree: Any) -> Any:
        return jax.tree.map(lambda x: jnp.reshape(x, (self.devices, -1, *x.shape[1:])), tree)

    def _devices(self) -> list[Any]:
        return jax.local_devices()[: self.devices]


@functools.lru_cache(maxsize=8)
def _copier(devices: tuple[Any, ...]) -> Callable[..., Any]:
    """One for each set of devices: a new one would compile again at every call.

    The axis has the name that it has elsewhere: it is part of the type of what comes out.
    """
    return jax.pmap(lambda x, _: x, axis_name=AXIS, in_axes=(None, 0), devices=devices)
