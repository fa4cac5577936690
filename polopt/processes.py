"""The processes of a run: how many, which one this is, and what they tell one another.

Every process runs the same program on its own hosts' devices. What each has of its own, shares of
a rollout or a request to stop, is gathered here; what is computed is equal everywhere.
"""

from __future__ import annotations

import dataclasses
import itertools
import pickle
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np

from polopt.errors import PoloptError
from polopt.launch.topology import Topology

T = TypeVar("T")

_SMALL = 1 << 16  # bytes that go by way of the coordination service
_PATIENCE = 24 * 60 * 60 * 1000  # milliseconds that a process may be slower than the others
_ROUNDS = itertools.count()


@dataclasses.dataclass(frozen=True)
class Processes:
    """This process among those of a run; alone unless told otherwise."""

    index: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that prints and writes records."""
        return self.index == 0

    def share(self, n: int) -> slice:
        """Which of n things are this process's: neighbours, in the order of the processes.

        >>> [range(7)[Processes(i, 3).share(7)] for i in range(3)]
        [range(0, 2), range(2, 4), range(4, 7)]
        """
        return slice(n * self.index // self.count, n * (self.index + 1) // self.count)

    def gather(self, value: T) -> list[T]:
        """What every process gave, in their order; all of them must call this.

        Args:
          value: anything that can be pickled, of less than 2 GiB.
        """
        if self.count == 1:
            return [value]
        data = pickle.dumps(value)
        small = len(data) <= _SMALL
        heard = _exchange(self, (len(data), data if small else None))
        if all(said is not None for _, said in heard):
            return [pickle.loads(said) for _, said in heard]
        sizes = [size for size, _ in heard]
        rows = _through_devices(data, max(sizes))
        return [pickle.loads(row[:size]) for row, size in zip(rows, sizes, strict=True)]

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make` returns in the first process; nobody goes on before it has.

        Raises:
          PoloptError: raised there, in every process.
        """
        made: Any = None
        if self.first:
            try:
                made = make()
            except PoloptError as error:
                if self.count == 1:
                    raise
                made = error
        made = self.gather(made)[0]
        if isinstance(made, PoloptError):
            raise made
        return made

    def check_same(self, value: Any, complaint: str) -> None:
        """See to it that all processes have the same.

        Raises:
          PoloptError: they do not: `complaint`, and what each has.
        """
        values = self.gather(value)
        if any(other != values[0] for other in values):
            each = ", ".join(f"{other} in process {i}" for i, other in enumerate(values))
            raise PoloptError(f"{complaint}: {each}")


ALONE = Processes()


def _exchange(among: Processes, word: Any) -> list[Any]:
    """A word of each, by way of JAX's coordination service: no device has a part in it.

    Nobody is waited for without end: who is lost, the service notices, and ends the others. It is
    in the first process, which therefore stays until all have heard: it may be about to leave.
    """
    from jax._src.distributed import global_state  # orbax does the same: there is no public way

    store, place = global_state.client, f"polopt/{next(_ROUNDS)}"
    assert store is not None
    store.key_value_set_bytes(f"{place}/{among.index}", pickle.dumps(word))
    keys = [f"{place}/{index}" for index in range(among.count)]
    words = [pickle.loads(store.blocking_key_value_get_bytes(key, _PATIENCE)) for key in keys]
    if not among.first:
        store.key_value_set_bytes(f"{place}/heard by {among.index}", b"all")
        return words
    for index in range(1, among.count):
        store.blocking_key_value_get_bytes(f"{place}/heard by {index}", _PATIENCE)
    store.key_value_delete(f"{place}/")
    return words


def _through_devices(data: bytes, most: int) -> np.ndarray:
    """u8[processes, most or more], over the links of the devices, which carry more than hosts'."""
    from jax.experimental.multihost_utils import process_allgather

    room = 1 << most.bit_length()  # few widths, as each is compiled
    return process_allgather(np.pad(np.frombuffer(data, np.uint8), (0, room - len(data))))


def present() -> Processes:
    """The processes that JAX runs in; wakes its devices."""
    return Processes(jax.process_index(), jax.process_count())


def join(others: Topology) -> Processes:
    """Meet the other processes; before anything else is asked of JAX.

    JAX aborts this process if some do not come within `others.start_seconds`: see
    `polopt.launch.roll_call`, which names them, and `polopt.launch.supervise`.

    Raises:
      PoloptError: JAX finds no cluster.
    """
    given = others.coordinator is not None
    # Its handler of SIGTERM would swallow what `polopt.train.stop` waits for.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator_address=others.coordinator,
            num_processes=others.count,
            process_id=others.index,
            cluster_detection_method="deactivate" if given else None,
            initialization_timeout=others.start_seconds,
            heartbeat_timeout_seconds=others.lost_seconds,
            shutdown_timeout_seconds=others.lost_seconds,
        )
    except (RuntimeError, ValueError) as error:
        said = str(error).strip().partition("\n")[0]
        raise PoloptError(f"the processes did not meet: {said[:300]}") from error
    return present()
