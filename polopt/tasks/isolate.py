"""A user's reward in a process of its own, killed when it outruns its limit.

A loop without end, a regular expression that backtracks for ever, a segmentation fault or a
`sys.exit` in a reward costs one sample, not the run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pickle
import select
import signal
import struct
import subprocess
import sys
import time
from typing import Any

from polopt.errors import PoloptError
from polopt.tasks.score import checked, sample_name
from polopt.tasks.task import Abstained, Example, Parts

_START_SECONDS = 60.0  # importing the user's module and what it imports
_REPLY_BYTES = 1 << 20


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


class _KilledError(Exception):
    """The process had to be killed, or died."""


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
            reply = self._ask(request)
        except _KilledError as error:
            return self._late(str(error), completion, example)
        self._killed = 0
        if "error" in reply:
            raise PoloptError(reply["error"])
        if "abstained" in reply:
            return Abstained(reply["abstained"])
        return checked(reply["parts"], self.spec, completion, example)

    def __enter__(self) -> IsolatedReward:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process; a later call would start a new one."""
        _kill(self._process)

    def _ask(self, request: bytes) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(request)
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise _KilledError("its process died") from error
        return _reply(self._process, self.limits.seconds)

    def _late(self, why: str, completion: str, example: Example) -> Parts | Abstained:
        _kill(self._process)
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
            ready = _reply(process, _START_SECONDS)
        except _KilledError as error:
            _kill(process)
            raise PoloptError(f"reward function {self.spec} did not load: {error}") from error
        if "error" in ready:
            _kill(process)
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


def _reply(process: subprocess.Popen[bytes], seconds: float) -> dict[str, Any]:
    """One JSON line from the child, or `_KilledError` with the reason."""
    assert process.stdout is not None
    pipe = process.stdout.fileno()
    deadline = time.monotonic() + seconds
    line = b""
    while not line.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([pipe], [], [], left)[0]:
            raise _KilledError(f"it took longer than {seconds:g} s")
        chunk = os.read(pipe, 65536)
        if not chunk:
            raise _KilledError(f"its process {_ending(process)}")
        line += chunk
        if len(line) > _REPLY_BYTES:
            raise _KilledError(f"its reply is longer than {_REPLY_BYTES} bytes")
    return json.loads(line)


def _ending(process: subprocess.Popen[bytes]) -> str:
    try:
        code = process.wait(timeout=1.0)
    except subprocess.TimeoutExpired:
        return "closed its output"
    return f"died of {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and all that it started, and leave no zombie."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
