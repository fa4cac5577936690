"""A worker's end becomes a code and at most one line; what it wrote for people is passed on."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from polopt.launch.supervise import supervise
from polopt.launch.topology import Topology

ROOT = Path(__file__).parents[2]
SECOND = Topology(coordinator="127.0.0.1:1", count=2, index=1)
ABORT = "import os, sys; sys.stderr.write(sys.argv[1]); sys.stderr.flush(); os.abort()"

# As jax 0.10.2 wrote it on the loopback when the other process was killed.
HEARTBEAT = (
    "E1128 20:41:08.594192   44 coordination_service_agent.cc:332] Polled an error from "
    "coordination service (this can be an error from this or another task).\n"
    "F1128 20:41:08.594200   44 client.h:77] Terminating process because the JAX distributed "
    "service detected fatal errors. This most likely indicates that another task died; see the "
    "other task logs for more details. absl::Status: UNAVAILABLE: The following tasks are "
    "unhealthy (stopped sending heartbeats):\n"
    "/job:jax_worker/replica:0/task:0\n"
    "The tasks have crashed.\n"
    "*** Check failure stack trace: ***\n"
    "    @     0x7f20  absl::log_internal::LogMessage::Die()\n"
    "Fatal Python error: Aborted\n\n"
    'Thread 0x1 (most recent call first):\n  File "loop.py", line 1 in run\n'
)

# And in another build, in the process that runs the service; two are gone.
POLLING = (
    "E1129 00:48:48.300127   12 coordination_service.cc:1549] [1] Use error polling to propagate "
    "the following error to all tasks: UNAVAILABLE: The following tasks are unhealthy (stopped "
    "sending heartbeats):\n2\n3\nThe tasks have crashed. Check the task logs.\n"
    "F1129 00:48:48.301040   12 client.h:80] Terminating process because the JAX distributed "
    "service detected fatal errors. absl::Status: UNAVAILABLE: The following tasks are unhealthy "
    "(stopped sending heartbeats):\n2\n3\nThe tasks have crashed.\n"
)


def ending(capfd, code, *args, of=SECOND):
    """The exit code and standard error of a worker that runs Python `code`."""
    result = supervise([sys.executable, "-S", "-c", code, *args], of)
    return result, capfd.readouterr().err


@pytest.mark.parametrize("code", [0, 1, 2, 143])
def test_an_exit_code_is_passed_on_and_nothing_is_added(capfd, code):
    script = f"import sys; print('polopt: what was wrong', file=sys.stderr); sys.exit({code})"
    assert ending(capfd, script) == (code, "polopt: what was wrong\n")


def test_an_abort_for_a_lost_process_is_one_line_that_names_it(capfd):
    code, err = ending(capfd, ABORT, "a user's line\n" + HEARTBEAT)
    assert code == 1
    assert err == (
        "a user's line\npolopt: process 1 of 2 ended because process 0 did; continue with the "
        "same commands and --resume\n"
    )


def test_processes_that_are_named_by_their_numbers_alone_are_named(capfd):
    code, err = ending(capfd, ABORT, POLLING, of=Topology(coordinator="h:1", count=4, index=0))
    assert code == 1
    assert err == (
        "polopt: process 0 of 4 ended because process 2 and 3 did; continue with the same commands "
        "and --resume\n"
    )


@pytest.mark.parametrize("end", ["os.abort()", "os._exit(1)"])
def test_a_line_of_its_own_is_the_only_one_however_it_ends(capfd, end):
    line = "polopt: process 1 of 2 ended because another process did\n"
    code = f"import os, sys; sys.stderr.write(sys.argv[1]); sys.stderr.flush(); {end}"
    assert ending(capfd, code, HEARTBEAT + line) == (1, line)


def test_a_meeting_that_fails_is_no_loss(capfd):
    said = HEARTBEAT.replace("UNAVAILABLE", "DEADLINE_EXCEEDED: Deadline Exceeded") + (
        "\nRPC: /xla.coordination.CoordinationService/RegisterTask\n"
    )
    code, err = ending(capfd, ABORT, said)
    assert (code, err.count("\n")) == (1, 1)
    assert "process 1 of 2 did not meet the others within 300 s" in err


def test_another_abort_keeps_what_was_said(capfd):
    code, err = ending(capfd, ABORT, "F1128 20:41:08.594200 44 x.cc:1] Check failed: a == b\n")
    assert code == 128 + signal.SIGABRT
    found = re.fullmatch(
        r"polopt: process 1 of 2 was ended by SIGABRT; what it said last is in (\S+)\n", err
    )
    assert "Check failed: a == b" in Path(found[1]).read_text()
    Path(found[1]).unlink()


def test_a_kill_is_one_line(capfd):
    code, err = ending(capfd, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert code == 128 + signal.SIGKILL
    assert err.startswith("polopt: process 1 of 2 was killed (SIGKILL)")
    assert err.count("\n") == 1


def test_logs_of_the_runtime_are_kept_back(capfd):
    log = "I1128 20:41:08.1 44 a.cc:1] hello\nW0000 00:00:00.1 44 a.cc:1] hello\nWATCH 1128\n"
    code, err = ending(capfd, "import sys; sys.stderr.write(sys.argv[1])", log)
    assert (code, err) == (0, "WATCH 1128\n")


def test_what_threads_of_gloo_say_at_once_is_kept_back(capfd):
    log = (
        "[Gloo] Rank [Gloo] Rank 0 is connected to 12 is connected to 7 peer ranks. Expected "
        "number of connected peer ranks is : 7\n7 peer ranks. Expected number of connected peer "
        "ranks is : \n7\n\nmeant 7\n7\n"
    )
    code, err = ending(capfd, "import sys; sys.stderr.write(sys.argv[1])", log)
    assert (code, err) == (0, "meant 7\n7\n")


def test_a_worker_knows_what_it_is(capfd):
    code = (
        "import os, sys; print(*(os.environ.get(n) for n in sys.argv[1:]), file=sys.stderr); "
        "sys.exit('numpy' in sys.modules)"
    )
    names = ["POLOPT_WORKER", *SECOND.environment]
    assert ending(capfd, code, *names) == (0, "1 127.0.0.1:1 2 1 300 100\n")


def test_a_child_that_the_worker_leaves_does_not_hold_the_parent(capfd):
    code = (
        "import subprocess, sys; p = subprocess.Popen(['sleep', '60']); "
        "print(p.pid, file=sys.stderr)"
    )
    start = time.monotonic()
    result, err = ending(capfd, code)
    assert result == 0
    assert time.monotonic() - start < 20
    assert gone(int(err))


# ---------------------------------------------------------------- signals

PARENT = """
import sys
from polopt.launch.supervise import supervise
from polopt.launch.topology import Topology
code = supervise([sys.executable, "-c", sys.argv[1]], Topology(coordinator="h:1", count=2, index=1))
assert "jax" not in sys.modules and "numpy" not in sys.modules
sys.exit(code)
"""
WORKER = """
import os, signal, sys, time
from polopt.launch.worker import end_with_parent
end_with_parent()
def stop(number, frame):
    print("asked", number, flush=True)
    if sys.argv[1:] != ["deaf"] and {ends}:
        sys.exit(143)
signal.signal(signal.SIGTERM, stop)
print(os.getpid(), flush=True)
while True:
    time.sleep(0.05)
"""


def parent(*, ends):
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, WORKER.replace("{ends}", str(ends))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    return process, int(process.stdout.readline())


def gone(pid):
    for _ in range(200):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def test_a_signal_goes_on_to_the_worker_and_its_code_comes_back():
    process, pid = parent(ends=True)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (143, "asked 15\n", "")
    assert gone(pid)


def test_a_worker_that_does_not_stop_at_once_is_killed():
    process, pid = parent(ends=False)
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "asked 15\n"
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (143, "")
    assert gone(pid)


def test_a_worker_ends_with_its_parent():
    process, pid = parent(ends=True)
    process.kill()
    process.communicate(timeout=30)
    assert gone(pid)
