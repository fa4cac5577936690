"""Reward functions of every character, for the tests of the reward contract."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from polopt.tasks import abstain


def good(*, prompt, completion, answer, metadata):
    return {"exact": completion == answer, "short": 1.0 / (1 + len(completion))}


def silent(*, completion, **_):
    return abstain("nothing to judge") if not completion else 1


def prints(**_):
    print("not a reply")
    sys.stdout.flush()
    return 0.5


def divides(**_):
    return 1 / 0


def nothing(**_):
    pass


def spins(*, completion, **_):
    while completion == "hang":
        pass
    return 1.0


def backtracks(*, completion, **_):
    """The search holds the interpreter lock for longer than anybody waits."""
    if completion == "hang":
        re.match(r"(a+)+$", "a" * 60 + "b")
    return 1.0


def stubborn(*, completion, **_):
    """It cannot be asked to stop, and neither can what it starts: the child's id is in a file."""
    if completion.startswith("hang"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        Path(completion.split()[1]).write_text(str(child.pid))
        time.sleep(600)
    return 1.0


def leaves(*, completion, **_):
    if completion == "hang":
        os._exit(3)
    return 1.0


def crashes(*, completion, **_):
    if completion == "hang":
        os.kill(os.getpid(), signal.SIGSEGV)
    return 1.0


def quits(*, completion, **_):
    if completion == "hang":
        raise SystemExit(5)
    return 1.0


def hoards(*, completion, **_):
    return float(len(bytearray(1 << 33))) if completion == "hang" else 1.0


def whoami(**_):
    return float(os.getpid())


def too_few(prompt, completion):
    return 1.0


not_callable = 3.0
