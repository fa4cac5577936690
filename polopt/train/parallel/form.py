"""What a run asks of the way in which it is spread over devices."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

from polopt.models.config import DecoderConfig
from polopt.processes import Processes


class Parallel(Protocol):
    """One form of running. What is *placed* lies on devices as the form wants it.

    Rows of a batch are dealt to devices in equal `parts`. A compiled function sees one of them
    under `pmap`, where it names the `axis` over which it sums, and else all of them, as `shards`.

    A run of several processes calls everything here alike in all of them, with equal arguments, and
    has equal results in all, but for what it does with `local`.
    """

    @property
    def devices(self) -> int:
        """How many are used, in all processes together."""
        ...

    @property
    def processes(self) -> Processes:
        """Those that can compute each by itself; `ALONE` where none can without the others."""
        ...

    @property
    def local(self) -> Parallel:
        """The form of what each of `processes` computes by itself, of what is placed as here."""
        ...

    @property
    def platform(self) -> str:
        """Of what kind: "cpu", "gpu" or "tpu"."""
        ...

    @property
    def parts(self) -> int:
        """Equal parts into which rows are dealt."""
        ...

    @property
    def shards(self) -> int:
        """Of these, how many a compiled function sees: `shards` of `polopt.models.score`."""
        ...

    @property
    def axis(self) -> str | None:
        """The name of the device axis inside a mapped function; None where there is none."""
        ...

    def check(self, config: DecoderConfig, params: Any) -> None:
        """See whether a model can be placed.

        Raises:
          PoloptError: it cannot; in one line, what does not fit.
        """
        ...

    def loading(self) -> AbstractContextManager[Any]:
        """Where models are read: on the host, if a device may be too small for a whole one."""
        ...

    def place(self, tree: Any) -> Any:
        """Put parameters, or what is shaped and named like them, on the devices."""
        ...

    def build(self, make: Callable[..., Any], *args: Any) -> Any:
        """What `make(*args)` is, placed; it is pure, and `args` are not placed yet."""
        ...

    def single(self, tree: Any) -> Any:
        """One copy of what is placed, as if there were one device."""
        ...

    def abstract(self, tree: Any) -> Any:
        """Shapes and types of arrays that are not placed, as a checkpoint is read.

        They are of `jax.ShapeDtypeStruct`, and say where an array is to be put, if the form puts
        its parts into different places.
        """
        ...

    def step(self, update: Callable[..., Any]) -> Callable[..., Any]:
        """Compile `update(state, given, trajectories, prepared, rows, layout) -> (state, info)`.

        `state` and `given` are placed, `state` is donated; `rows i32[R]` and the splits of `layout`
        are dealt to the devices. The new state lies where the old one did; `info` is a single copy.
        """
        ...

    def rows(self, fn: Callable[..., Any], *, dealt: int) -> Callable[..., Any]:
        """Compile `fn(params, shared, *rows) -> tree of [R, ...]` over rows.

        `params` are placed, `shared` is any tree and for all devices, the `dealt` others are trees
        with rows in front, as many as divide by `parts`.
        """
        ...

    def ambient(self) -> AbstractContextManager[Any]:
        """Under which other compiled functions are called on what is placed, if `axis` is None."""
        ...
