"""The folder of a run of several processes: the first writes it, all read its checkpoints."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

from polopt.processes import Processes
from polopt.train.config import TrainConfig
from polopt.train.record import Record, open_record


@dataclasses.dataclass(frozen=True)
class Seen:
    """What a process that does not write the record knows of it."""

    path: Path
    resumed: bool

    @property
    def checkpoints(self) -> Path:
        """Where they are."""
        return self.path / "checkpoints"

    def resume_at(self, step: int) -> None:
        """Do nothing: the lines are the first process's."""


@contextlib.contextmanager
def shared_record(config: TrainConfig, processes: Processes) -> Iterator[Record | Seen]:
    """Open the record in the first process, for all of them; see `open_record`.

    Raises:
      PoloptError: as `open_record`, in every process; or some do not see the folder.
    """
    with contextlib.ExitStack() as held:
        mine: list[Record] = []

        def begin() -> bool:
            mine.append(held.enter_context(open_record(config)))
            return mine[0].resumed

        resumed = processes.from_first(begin)
        processes.check_same(
            (config.folder / "config.json").is_file(),
            f"{config.folder} must be one folder for all hosts (a bucket or a network file system, "
            "mounted); it is seen",
        )
        yield mine[0] if mine else Seen(config.folder, resumed)
