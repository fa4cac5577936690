"""How the processes of a run divide the prompts of a rollout among themselves. Host side."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeVar

from polopt.processes import ALONE, Processes
from polopt.rollout.blocks import joined
from polopt.types import Trajectories

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Shares:
    """Each process verifies the completions of its share of the prompts."""

    processes: Processes = ALONE
    apart: bool = False
    """Each draws its share, and no others, by itself; else all draw everything together."""

    def drawn(self, prompts: int) -> slice:
        """Which of so many prompts this process draws."""
        return self.processes.share(prompts) if self.apart else slice(0, prompts)

    def written(
        self, prompts: int, write: Callable[[slice], tuple[Trajectories, list[str]]]
    ) -> tuple[Trajectories, list[str]]:
        """The rows of all prompts, each a group of its own, and their texts, in every process.

        Args:
          prompts: how many there are.
          write: what comes of those of the drawn prompts that are this process's to verify.
        """
        mine, first = self.processes.share(prompts), self.drawn(prompts).start
        share = slice(mine.start - first, mine.stop - first)
        own = write(share) if share.stop > share.start else None
        return joined([part for part in self.processes.gather(own) if part is not None])

    def each(
        self, rows: int, size: int, make: Callable[[int], T], told: Callable[[T], T]
    ) -> list[T]:
        """`[make(n) for n in range(rows)]`, of rows of the drawn prompts, in every process.

        Where all draw together each makes what is of its share: work on the host whose outcome may
        not be the same twice.

        Args:
          rows: how many there are.
          size: of a group of neighbours, which stay in one process.
          make: called for rows of the same prompts at every call of `each`.
          told: what the other processes get to know.
        """
        if self.apart or self.processes.count == 1:
            return [make(n) for n in range(rows)]
        mine = self.processes.share(rows // size)
        own = [make(n) for n in range(mine.start * size, mine.stop * size)]
        parts = self.processes.gather([told(one) for one in own])
        parts[self.processes.index] = own
        return [one for part in parts for one in part]


UNSHARED = Shares()
