"""Processes as threads: each learns whether all are there, and if not, who is missing."""

import contextlib
import socket
import threading
import time

import pytest

from polopt.errors import PoloptError
from polopt.launch.roll_call import roll_call
from polopt.launch.topology import Topology


@pytest.fixture
def port():
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def of(port, index, count=3, seconds=5):
    where = f"127.0.0.1:{port}"
    return Topology(coordinator=where, count=count, index=index, start_seconds=seconds)


def outcomes(*processes, pause=0.0):
    """What each process comes to, all at once: None, or the words of its error."""
    said = {}

    def one(place, process):
        try:
            roll_call(process)
            said[place] = None
        except PoloptError as error:
            said[place] = str(error)

    threads = [threading.Thread(target=one, args=item) for item in enumerate(processes)]
    for thread in threads:
        thread.start()
        time.sleep(pause)
    for thread in threads:
        thread.join(timeout=20)
    return [said[place] for place in range(len(processes))]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_all_go_on_when_all_are_there(port, order):
    assert outcomes(*(of(port, i) for i in order), pause=0.1) == [None] * 3
    with socket.create_server(("127.0.0.1", port)):  # the port is JAX's now
        pass


def test_who_does_not_come_is_named_to_all_in_time(port):
    start = time.monotonic()
    said = outcomes(of(port, 0, 4, 1), of(port, 2, 4, 1))
    assert 1 <= time.monotonic() - start < 4
    assert said[0] == said[1]
    assert said[0].startswith("process 1, 3 of 4 did not come within 1 s")


def test_a_first_process_that_is_not_there_is_named(port):
    (said,) = outcomes(of(port, 1, seconds=1))
    assert said.startswith(f"process 0 did not answer at 127.0.0.1:{port} within 1 s")


def test_a_stranger_is_nobody(port):
    def knock():
        for _ in range(50):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)) as s:
                s.sendall(b"GET / HTTP/1.1\r\n\r\n")
                return
            time.sleep(0.02)

    stranger = threading.Thread(target=knock)
    stranger.start()
    said = outcomes(of(port, 0, 2, 1), of(port, 1, 2, 1), pause=0.3)
    stranger.join()
    assert said == [None, None]


def test_processes_that_were_told_different_things_are_refused(port):
    said = outcomes(of(port, 0, 2), of(port, 1, 3))
    assert said == ["process 1 was told of 3 processes, and process 0 of 2"] * 2


def test_a_number_that_two_have_is_refused(port):
    said = outcomes(of(port, 0), of(port, 1), of(port, 1))
    assert said[0] == "two processes say that they are process 1 of 3"


def test_a_port_that_is_taken_is_refused(port):
    with socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True):
        (said,) = outcomes(of(port, 0))
    assert f"process 0 cannot listen on port {port} of this host: address already in use" in said
