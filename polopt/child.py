"""A child process that answers with JSON lines: each within its time, or it is killed.

`reply` and `kill` are for the parent, `private_streams` and `send` for the child.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from typing import Any, BinaryIO

_REPLY_BYTES = 1 << 20


class KilledError(Exception):
    """The child had to be killed, or died; the message says why, with "it" for the child."""


def reply(process: subprocess.Popen[bytes], seconds: float) -> dict[str, Any]:
    """One JSON line from the child's standard output.

    Args:
      process: with a pipe for standard output; it writes one line for each that is read here.
      seconds: how long it may take.

    Raises:
      KilledError: it took longer, ended, or wrote too much. It is not killed yet: see `kill`.
    """
    assert process.stdout is not None
    pipe = process.stdout.fileno()
    deadline = time.monotonic() + seconds
    line = b""
    while not line.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([pipe], [], [], left)[0]:
            raise KilledError(f"it took longer than {seconds:g} s")
        chunk = os.read(pipe, 65536)
        if not chunk:
            raise KilledError(f"its process {_ending(process)}")
        line += chunk
        if len(line) > _REPLY_BYTES:
            raise KilledError(f"its reply is longer than {_REPLY_BYTES} bytes")
    return json.loads(line)


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a child that leads a session, and all that it started, and leave no zombie."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def _ending(process: subprocess.Popen[bytes]) -> str:
    try:
        code = process.wait(timeout=1.0)
    except subprocess.TimeoutExpired:
        return "closed its output"
    return f"died of {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"


def private_streams() -> tuple[BinaryIO, BinaryIO]:
    """The pipes to the parent, kept from the user's code.

    Its `print` goes to standard error, its `input` is empty.

    Returns:
      What the parent asks, and where the replies go.
    """
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    return requests, replies


def send(replies: BinaryIO, message: dict[str, Any]) -> None:
    """Write one reply."""
    replies.write(json.dumps(message).encode() + b"\n")
    replies.flush()
