"""What a person sees of a fine-tuning run: one moving line in a terminal, lines elsewhere."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

from polopt.train.sft_config import SftConfig
from polopt.train.sinks import SampleView, Summary
from polopt.train.view import duration, sparkline

_LINES = 20  # of a whole run, where lines stay
_CURVE = 30  # columns


class LossProgress:
    """Prints loss, pace and the time that is left."""

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        patience: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Print to `stream`, standard output unless given; a line at least every `patience` s."""
        self._stream = sys.stdout if stream is None else stream
        self._patience, self._clock = patience, clock
        self._moving = self._stream.isatty()
        self._steps, self._spoke = 0, clock()
        self._losses: list[float] = []
        self._paces: list[float] = []

    def start(self, config: SftConfig, info: Mapping[str, Any]) -> None:
        """Say what runs."""
        self._steps = info["steps"]
        how = f"adapters of rank {config.lora_rank}" if config.lora_rank else "all weights"
        print(
            f"{config.model} on {config.data or config.task}: {info['rows']} rows, "
            f"{self._steps} steps of {config.batch}, {how}\n"
            "compiling the update, once for each width of a batch ...",
            file=self._stream,
            flush=True,
        )

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the step, where lines stay only when one is due."""
        self._losses.append(metrics["supervised/loss"])
        self._paces = [*self._paces[-20:], metrics["time/step"]]
        late = self._clock() - self._spoke >= self._patience
        due = step in (1, self._steps) or step % max(1, self._steps // _LINES) == 0
        if self._moving:
            end = "\n" if step == self._steps else ""
            print(f"\r\x1b[2K{self._line(step)}", end=end, file=self._stream, flush=True)
        elif due or late:
            print(self._line(step), file=self._stream, flush=True)
            self._spoke = self._clock()

    def _line(self, step: int) -> str:
        pace = statistics.median(self._paces)
        left = duration(pace * (self._steps - step))
        loss = f"loss {self._losses[-1]:.4f}"
        line = f"step {step}/{self._steps}  {loss}  {pace:.2g} s/step  {left} left"
        return f"{line}  {sparkline(self._losses, _CURVE)}" if self._moving else line

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Do nothing: there is none."""

    def samples(self, step: int, samples: Sequence[SampleView]) -> None:
        """Do nothing: there are none."""

    def finish(self, summary: Summary) -> None:
        """Say where the run is and what to do with it."""
        if self._moving and summary.stopped:
            print(file=self._stream)
        print(
            f"{duration(summary.seconds)}; the run is in {summary.run}\n"
            f"measure it:  polopt eval {summary.run}\n"
            f"improve it:  polopt train --model {summary.run}",
            file=self._stream,
            flush=True,
        )

    def close(self) -> None:
        """Do nothing: nothing is held."""
