"""Who is there, asked before JAX is: its own meeting ends in an abort that names nobody.

Process 0 listens at the coordinator's address until every other one has said its number, or the
time is over; then it tells them all, and leaves the port to JAX.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time

from polopt.errors import PoloptError
from polopt.launch.topology import Topology

_HELLO = "polopt {index} of {count}\n"
_RETRY = 0.2  # seconds between attempts to reach process 0
_ONE_LINE = 5.0  # seconds for a line from a process that has connected
_ALL_HERE = "all"


def roll_call(of: Topology) -> None:
    """Wait until all processes are there, `of.start_seconds` at most.

    Raises:
      PoloptError: some did not come, and which; or they do not agree how many there are.
    """
    assert of.coordinator is not None
    host, _, port = of.coordinator.rpartition(":")
    deadline = time.monotonic() + of.start_seconds
    if of.index == 0:
        _call(int(port), of, deadline)
    else:
        _answer((host.strip("[]"), int(port)), of, deadline)


def _call(port: int, of: Topology, deadline: float) -> None:
    assert of.count is not None
    present: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as held:
        server = held.enter_context(_listening(port))
        verdict = _ALL_HERE
        while len(present) < of.count - 1 and verdict == _ALL_HERE:
            server.settimeout(max(deadline - time.monotonic(), 1e-3))
            try:
                caller, _ = server.accept()
            except TimeoutError:
                absent = sorted(set(range(1, of.count)) - set(present))
                verdict = _did_not_come(absent, of)
                break
            held.enter_context(caller)
            words = _line(caller, _ONE_LINE).split()
            if len(words) != 4 or words[0] != "polopt":
                continue  # a stranger
            index, count = int(words[1]), int(words[3])
            if count != of.count:
                verdict = (
                    f"process {index} was told of {count} processes, and process 0 of {of.count}"
                )
            elif index in present:
                verdict = f"two processes say that they are process {index} of {of.count}"
            present[index] = caller
        for caller in present.values():
            with contextlib.suppress(OSError):
                caller.sendall(f"{verdict}\n".encode())
    if verdict != _ALL_HERE:
        raise PoloptError(verdict)


def _answer(address: tuple[str, int], of: Topology, deadline: float) -> None:
    silent = PoloptError(
        f"process 0 did not answer at {of.coordinator} within {of.start_seconds} s: is it running "
        "there, and may this host reach that port?"
    )
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise silent
        try:
            link = socket.create_connection(address, timeout=left)
        except OSError:
            time.sleep(_RETRY)
            continue
        with link:
            link.sendall(_HELLO.format(index=of.index, count=of.count).encode())
            # Process 0 may have begun to wait later: it is the one that ends the waiting.
            verdict = _line(link, of.start_seconds + _ONE_LINE)
        if not verdict:
            raise silent
        if verdict != _ALL_HERE:
            raise PoloptError(verdict)
        return


def _listening(port: int) -> socket.socket:
    """A socket on all of this host's addresses, as JAX's own."""
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port))
    except OSError as error:
        raise PoloptError(
            f"--coordinator: process 0 cannot listen on port {port} of this host: "
            f"{os.strerror(error.errno or 0).lower()}"
        ) from error


def _line(link: socket.socket, seconds: float) -> str:
    """One line from the other end; empty if it is not whole in time."""
    link.settimeout(seconds)
    try:
        with link.makefile("r", encoding="utf-8", errors="replace") as file:
            line = file.readline(500)
    except OSError:
        return ""
    return line.strip() if line.endswith("\n") else ""


def _did_not_come(absent: list[int], of: Topology) -> str:
    who = ", ".join(map(str, absent))
    return (
        f"process {who} of {of.count} did not come within {of.start_seconds} s: is the same "
        "command running on every host?"
    )
