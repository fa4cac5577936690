"""Where a run's events go. The loop knows this protocol only, and no sink can stop it."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True, kw_only=True)
class SampleView:
    """One completion as people read it. `correct` is None where only a reward is known."""

    prompt: str
    completion: str
    answer: str
    reward: float
    stop: str
    correct: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a run comes to: `first` and `last` are its evaluations before and after training."""

    run: Path
    steps: int
    seconds: float
    first: Mapping[str, float] | None = None
    last: Mapping[str, float] | None = None
    checkpoint: Path | None = None
    stopped: str | None = None
    """Name of the signal that ended the run before its last step."""


class Sink(Protocol):
    """Receiver of a run's events.

    Order: `start`; per step any of `evaluation`, `step` and `samples`, with `step` never
    falling (0 is before training); `finish` when the run ends or is stopped. `close` comes
    last and always, after an error too, and may come twice. Metrics are named in
    `polopt.train.record.SCHEMA`.
    """

    def start(self, config: Any, info: Mapping[str, Any]) -> None:
        """Begin; `config` is the run's, `info` has devices, versions and the step resumed from."""

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take the metrics of one training step."""

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take the metrics of a held-out evaluation after `step` steps."""

    def samples(self, step: int, samples: Sequence[SampleView]) -> None:
        """Take a few completions to look at."""

    def finish(self, summary: Summary) -> None:
        """Take the outcome."""

    def close(self) -> None:
        """Release what is held."""


class Fanout:
    """A sink that passes events on to several and keeps their failures from the caller.

    The first failure of each sink is a warning that names the sink and the error; later ones
    are silent, and the sink is still tried, so that it recovers from a full disk.
    """

    def __init__(self, sinks: Sequence[Sink]) -> None:
        """Take the sinks in the order in which they are called."""
        self._sinks = tuple(sinks)
        self._failed: set[int] = set()

    def _each(self, event: str, *args: Any) -> None:
        for index, sink in enumerate(self._sinks):
            try:
                getattr(sink, event)(*args)
            except Exception as error:
                if index in self._failed:
                    continue
                self._failed.add(index)
                warnings.warn(
                    f"{type(sink).__name__} failed at {event} and training goes on: "
                    f"{type(error).__name__}: {error}",
                    RuntimeWarning,
                    stacklevel=3,
                )

    def start(self, config: Any, info: Mapping[str, Any]) -> None:
        """Pass on."""
        self._each("start", config, info)

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Pass on."""
        self._each("step", step, metrics)

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Pass on."""
        self._each("evaluation", step, metrics)

    def samples(self, step: int, samples: Sequence[SampleView]) -> None:
        """Pass on."""
        self._each("samples", step, samples)

    def finish(self, summary: Summary) -> None:
        """Pass on."""
        self._each("finish", summary)

    def close(self) -> None:
        """Pass on."""
        self._each("close")
