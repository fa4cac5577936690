"""The processes of a run: how many, which one this is, and what they tell one another.

Every process runs the same program on its own hosts' devices. What each has of its own, shares of
a rollout or a request to stop, is gathered here; what is computed is equal everywhere.
"""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np

from polopt.errors import PoloptError
from polopt.launch.topology import Topology

T = TypeVar("T")


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
        from jax.experimental.multihost_utils import process_allgather

        data = np.frombuffer(pickle.dumps(value), np.uint8)
        sizes = process_allgather(np.int32(len(data)))
        room = 1 << int(sizes.max()).bit_length()  # few widths, as each is compiled
        rows = process_allgather(np.pad(data, (0, room - len(data))))
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
