"""One device: plain `jit`."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import jax

from polopt.compiler import jit
from polopt.models.config import DecoderConfig
from polopt.processes import ALONE, Processes


@dataclasses.dataclass(frozen=True)
class Jit:
    """Everything on the default device; see `Parallel`."""

    devices: int = 1
    parts: int = 1
    shards: int = 1
    axis: None = None
    processes: Processes = ALONE

    @property
    def local(self) -> Jit:
        """This one."""
        return self

    @property
    def platform(self) -> str:
        """Of the default device."""
        return jax.default_backend()

    def check(self, config: DecoderConfig, params: Any) -> None:
        """Nothing to refuse: what does not fit the device, its own message says."""

    def loading(self) -> AbstractContextManager[Any]:
        """Straight to the device."""
        return contextlib.nullcontext()

    def place(self, tree: Any) -> Any:
        """Where it is."""
        return tree

    def build(self, make: Callable[..., Any], *args: Any) -> Any:
        """As it is made."""
        return make(*args)

    def single(self, tree: Any) -> Any:
        """The tree itself."""
        return tree

    def abstract(self, tree: Any) -> Any:
        """The tree, whose shapes and types are read."""
        return tree

    def step(self, update: Callable[..., Any]) -> Callable[..., Any]:
        """See `Parallel`."""
        return jit(update, donate_argnums=0)

    def rows(self, fn: Callable[..., Any], *, dealt: int) -> Callable[..., Any]:
        """See `Parallel`."""
        return jit(fn)

    def ambient(self) -> AbstractContextManager[Any]:
        """Nothing: there is one device."""
        return contextlib.nullcontext()
