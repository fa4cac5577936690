"""A parent without jax for each process of a run of several.

JAX ends all processes of a run when one of them dies: in C++, by an abort that no Python code can
catch, behind a page of stack trace. The parent owns the standard error of its worker, passes on
what is written for people, and turns such an end into one line and an exit code.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType
from typing import IO

from polopt.launch.topology import Topology

WORKER = "POLOPT_WORKER"
"""The environment variable that tells a process that it is a worker."""

_GRACE = 5.0  # seconds for a worker that was asked to stop at once, and for its last words
_KEPT = 400  # lines of a worker's standard error, for its end
_FORWARDED = (signal.SIGINT, signal.SIGTERM)
# What XLA, absl and gloo log, and what glibc and Python say while a process aborts.
_LOGGED = re.compile(r"[IWEF]\d{4} \d\d:\d\d:\d\d|WARNING: All log messages before absl")
# Its threads write at once, so that pieces of such lines stand in any order.
_GLOO = re.compile(r"\[Gloo\] Rank|is connected to|connected peer ranks")
_REST_OF_GLOO = re.compile(r"[\d\s]*")
_ABORTING = re.compile(
    r"F\d{4} |\*\*\* |Fatal Python error|terminate called|E\d{4} .*Use error polling to propagate"
)
_LOST = re.compile(r"distributed service detected fatal errors|[Cc]oordination ?[Ss]ervice")
_MEETING = "CoordinationService/RegisterTask"
_NAMED = re.compile(r"task[:/_ ]+(\d+)")
_SILENT = re.compile(r"stopped sending heartbeats\):\n((?:\S*\d\n)+)")


def is_worker(environ: Mapping[str, str]) -> bool:
    """Whether this process was started by `supervise`."""
    return WORKER in environ


def supervise(command: Sequence[str], of: Topology) -> int:
    """Run one process of several to its end.

    SIGINT and SIGTERM go on to the worker; a second one gives it `_GRACE` seconds. Its standard
    input is a pipe that closes when this process ends, however it does: see
    `polopt.launch.worker`.

    Args:
      command: what to run.
      of: the processes, of which the worker is one.

    Returns:
      The worker's exit code; 128 and the number of the signal that killed it; 1 if it ended
      because another process did.
    """
    worker = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **of.environment, WORKER: "1"},
        start_new_session=True,
    )
    assert worker.stdin is not None
    assert worker.stderr is not None
    relay = _Relay(worker.stderr)
    with _forwarding(worker) as asked:
        code = worker.wait()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(worker.pid, signal.SIGKILL)  # what the worker left
    relay.join(timeout=_GRACE)  # a session of its own may still hold the pipe
    worker.stdin.close()
    if len(asked) > 1:
        return 128 + asked[-1]
    code, line = _ending(code, relay.text, of)
    if line is not None:
        print(f"polopt: {of} {line}", file=sys.stderr)
    return code


def lost(said: str, of: Topology) -> str:
    """Which process is gone, by what JAX's coordination service says of it.

    >>> lost("task: /job:jax_worker/replica:0/task:3", Topology(index=1, count=4))
    'ended because process 3 did; continue with the same commands and --resume'
    """
    silent = (re.findall(r"\d+$", names, re.MULTILINE) for names in _SILENT.findall(said))
    named = [*_NAMED.findall(said), *itertools.chain.from_iterable(silent)]
    others = dict.fromkeys(n for n in named if n != str(of.index))
    if not others and of.index != 0 and "leader task" in said:
        others = {"0": None}
    who = f"process {' and '.join(others)}" if others else "another process"
    return f"ended because {who} did; continue with the same commands and --resume"


def _ending(code: int, said: str, of: Topology) -> tuple[int, str | None]:
    """What a worker's end is to the caller: a code, and a line if it said none itself."""
    if code >= 0 and code != 128 + signal.SIGABRT:
        return code, None
    number = signal.SIGABRT if code > 0 else -code
    if number == signal.SIGKILL:
        return 128 + number, (
            "was killed (SIGKILL): by hand, or because the host's memory was full; continue with "
            "the same commands and --resume"
        )
    if number == signal.SIGABRT and _MEETING in said:
        return 1, (
            f"did not meet the others within {of.start_seconds} s: is the same command running on "
            "every host?"
        )
    if number == signal.SIGABRT and _LOST.search(said):
        # The worker's own thread may have noticed at the same moment.
        return 1, None if f"polopt: {of} ended" in said else lost(said, of)
    return 128 + number, _last_words(number, said)


def _last_words(number: int, said: str) -> str:
    with tempfile.NamedTemporaryFile(
        "w", prefix="polopt-", suffix=".log", delete=False, encoding="utf-8"
    ) as file:
        file.write(said)
    return f"was ended by {signal.Signals(number).name}; what it said last is in {file.name}"


class _Relay(threading.Thread):
    """Passes on what a worker writes to standard error, without the logs of the runtime below it.

    Once the process aborts nothing more is for people, but for polopt's own line; `text` has all.
    """

    def __init__(self, source: IO[bytes]) -> None:
        super().__init__(daemon=True)
        self._source, self._lines = source, deque[str](maxlen=_KEPT)
        self.start()

    @property
    def text(self) -> str:
        return "".join(self._lines)

    def run(self) -> None:
        aborting = gloo = False
        with self._source:
            for raw in self._source:
                line = raw.decode(errors="replace")
                self._lines.append(line)
                aborting = aborting or bool(_ABORTING.match(line))
                gloo = bool(_GLOO.search(line) or (gloo and _REST_OF_GLOO.fullmatch(line)))
                meant = not (aborting or gloo or _LOGGED.match(line))
                if meant or line.startswith("polopt: "):
                    with contextlib.suppress(OSError):  # nobody reads any more; the run goes on
                        sys.stderr.write(line)
                        sys.stderr.flush()


@contextlib.contextmanager
def _forwarding(worker: subprocess.Popen[bytes]) -> Iterator[list[int]]:
    """Yields the signals that were passed on so far."""
    asked: list[int] = []

    def forward(number: int, _: FrameType | None) -> None:
        asked.append(number)
        worker.send_signal(number)
        if len(asked) == 2:
            timer = threading.Timer(_GRACE, worker.kill)
            timer.daemon = True
            timer.start()

    before = {number: signal.signal(number, forward) for number in _FORWARDED}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
