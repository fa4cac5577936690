"""A user's reward in a process of its own, killed when it outruns its limit.

A loop without end, a regular expression that backtracks for ever, a segmentation fault or a
`sys.exit` in a reward costs one sample, not the run.
"""

from __future__ import annotations

import dataclasses
import os
import pickle
import struct
import subprocess
import sys
from typing import Any

from polopt.child import KilledError, kill, reply
from polopt.errors import PoloptError
from polopt.tasks.score import checked, sample_name
from polopt.tasks.task import Abstained, Example, Parts

_START_SECONDS = 60.0  # importing the user's module and what it imports


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What one call of a reward may cost, and what becomes of a sample whose call is killed."""

    seconds: float = 10.0  # wall clock
    memory_mb: int | None = None  # address space of the process
    late: Parts | None = None  # score of a killed call's sample; None abstains
    give_up: int = 8  # so many killed calls in a row are an error

    def __post_init__(self) -> None:
        if not self.seconds > 0:
            raise PoloptError(f"Limits.seconds is {self.seconds!r}: give a number above 0")
        if self.give_up < 1:
            raise PoloptError(f"Limits.give_up is {self.give_up!r}: give 1 or more")


class IsolatedReward:
    """The reward function `spec` (see `load_function`), called in a child process.

    One call at a time. Use it as a context manager, or `close` it; a child whose parent is gone
    ends by itself.

    Raises:
      PoloptError: the function cannot be loaded; later, what `user_reward` raises, or `give_up`
        calls in a row were killed.
    """

    def __init__(self, spec: str, limits: Limits | None = None):
        self.spec = spec
        self.limits = limits or Limits()
        self._killed = 0
        self._process = self._start()

    def __call__(self, completion: str, example: Example) -> Parts | Abstained:
        """Score one sample, within the limits."""
        request = _packed(completion, example, self.spec)
        if self._process.poll() is not None:
            self._process = self._start()
        try:
            answer = self._ask(request)
        except KilledError as error:
            return self._late(str(error), completion, example)
        self._killed = 0
        if "error" in answer:
            raise PoloptError(answer["error"])
        if "abstained" in answer:
            return Abstained(answer["abstained"])
        return checked(answer["parts"], self.spec, completion, example)

    def __enter__(self) -> IsolatedReward:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process; a later call would start a new one."""
        kill(self._process)

    def _ask(self, request: bytes) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(request)
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise KilledError("its process died") from error
        return reply(self._process, self.limits.seconds)

    def _late(self, why: str, completion: str, example: Example) -> Parts | Abstained:
        kill(self._process)
        self._killed += 1
        if self._killed >= self.limits.give_up:
            raise PoloptError(
                f"reward function {self.spec}: {self._killed} calls in a row failed, the last "
                f"because {why}, on {sample_name(completion, example)}"
            )
        if self.limits.late is None:
            return Abstained(why)
        return dict(self.limits.late)

    def _start(self) -> subprocess.Popen[bytes]:
        memory = str(self.limits.memory_mb or 0)
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "polopt.tasks.worker"),
                *(self.spec, str(self.limits.seconds), memory),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # so that what it starts can be killed with it
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )
        try:
            ready = reply(process, _START_SECONDS)
        except KilledError as error:
            kill(process)
            raise PoloptError(f"reward function {self.spec} did not load: {error}") from error
        if "error" in ready:
            kill(process)
            raise PoloptError(ready["error"])
        return process


def _packed(completion: str, example: Example, spec: str) -> bytes:
    try:
        fields = (example.prompt, example.answer, example.index, dict(example.metadata))
        body = pickle.dumps((completion, fields))
    except Exception as error:
        raise PoloptError(
            f"reward function {spec}: the metadata of {sample_name(completion, example)} "
            f"cannot be sent to its process: {error}"
        ) from error
    return struct.pack("<Q", len(body)) + body
