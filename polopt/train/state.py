"""Where a run stands between two training steps, and how that is kept in a checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from polopt.errors import PoloptError
from polopt.models.layout import Room
from polopt.processes import ALONE, Processes
from polopt.rollout.collect import Cursor
from polopt.rollout.pool import Pool
from polopt.train import checkpoint
from polopt.train.parallel import Parallel
from polopt.train.update import Params, TrainState

MAX_SKIPPED = 10  # training steps in a row without one finite gradient
_COUNTERS = ("barren", "first", "last")


@dataclasses.dataclass
class Progress:
    """What moves from step to step."""

    state: TrainState
    cursor: Cursor = dataclasses.field(default_factory=Cursor)
    pool: Pool = dataclasses.field(default_factory=dict)  # what is remembered of the prompts
    average: Params = dataclasses.field(default_factory=dict)  # of policies, if it is a reference
    step: int = 0  # training steps done: rollouts with their update
    saved: int = -1  # step of the newest checkpoint
    rooms: list[Room] = dataclasses.field(default_factory=list)  # sizes that have their programs
    barren: int = 0  # steps in a row that were skipped whole
    first: Mapping[str, float] | None = None
    last: Mapping[str, float] | None = None

    def spread(self, parallel: Parallel) -> Progress:
        """The same, placed."""
        state, average = parallel.place((self.state, self.average))
        return dataclasses.replace(self, state=state, average=average)

    def count_skipped(self, skipped: bool, *, step: int, checkpoints: Path) -> None:
        """Count a step that was skipped whole; one that was not begins the count anew.

        Raises:
          PoloptError: `MAX_SKIPPED` of them in a row.
        """
        self.barren = self.barren + 1 if skipped else 0
        if self.barren == MAX_SKIPPED:
            raise PoloptError(
                f"{MAX_SKIPPED} steps in a row had no finite gradient, so the parameters did not "
                f"move: stopped in step {step}; checkpoints are in {checkpoints}"
            )


def due(every: int, step: int) -> bool:
    """Whether what is done every so many steps (0: never) is done after this one."""
    return bool(every) and step % every == 0


def arrays(now: Progress) -> dict[str, Any]:
    """What a checkpoint holds besides counters; leaves of the train state keep their names."""
    state = {field.name: getattr(now.state, field.name) for field in dataclasses.fields(now.state)}
    return {**state, "pool": now.pool, "average": now.average}


def save(folder: Path, now: Progress, parallel: Parallel, processes: Processes = ALONE) -> None:
    """Write the checkpoint of a step; see `checkpoint.save`."""
    state, average = parallel.single((now.state, now.average))
    counters = {
        "cursor": dataclasses.asdict(now.cursor),
        "rooms": now.rooms,
        **{name: getattr(now, name) for name in _COUNTERS},
    }
    held = arrays(dataclasses.replace(now, state=state, average=average))
    checkpoint.save(folder, now.step, held, counters, processes=processes)
    now.saved = now.step


def restore(folder: Path, like: Progress, processes: Processes = ALONE) -> Progress | None:
    """The newest checkpoint that is whole; None if there is none.

    Args:
      like: the run before its first step, or its shapes. What they say where to put is put there,
        the rest lies on one device.
      processes: of the run.
    """
    found = checkpoint.restore(folder, arrays(like), processes=processes)
    if found is None:
        return None
    step, held, counters = found
    pool = held.pop("pool")
    # Copied: the state is donated, and JAX may not own memory that NumPy allocated.
    held = jax.tree.map(lambda x: x if isinstance(x, jax.Array) else jnp.array(x), held)
    return Progress(
        average=held.pop("average"),
        state=TrainState(**held),
        cursor=Cursor(**counters["cursor"]),
        rooms=[Room(*sizes) for sizes in counters["rooms"]],
        pool=pool,
        step=step,
        saved=step,
        **{name: counters[name] for name in _COUNTERS},
    )
