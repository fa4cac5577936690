"""Rewards that hang, crash or hoard cost one sample, in bounded time, and leave nothing behind."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from polopt.errors import PoloptError
from polopt.tasks import Abstained, Example, IsolatedReward, Limits

REWARDS = Path(__file__).parent / "rewards.py"
EXAMPLE = Example(prompt="", answer="7", index=5, metadata={"pair": (1, 2)})
SHORT = Limits(seconds=1.0)


def isolated(name, limits=SHORT):
    return IsolatedReward(f"{REWARDS}:{name}", limits)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()


def test_answers_are_those_of_the_function():
    with isolated("good") as reward:
        assert reward("7", EXAMPLE) == {"exact": 1.0, "short": 0.5}
        assert reward("\udc80 \x00 👩‍👧", EXAMPLE)["exact"] == 0.0
    with isolated("silent") as reward:
        assert reward("", EXAMPLE) == Abstained("nothing to judge")
        assert reward("x", EXAMPLE) == {"score": 1.0}


def test_printing_does_not_disturb_the_replies():
    with isolated("prints") as reward:
        assert [reward("x", EXAMPLE) for _ in range(3)] == [{"score": 0.5}] * 3


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("spins", "took longer than 1 s"),
        ("backtracks", "took longer than 1 s"),
        ("leaves", "exited with 3"),
        ("quits", "exited with 5"),
        ("crashes", "died of SIGSEGV"),
    ],
)
def test_a_killed_call_abstains_and_the_next_one_works(name, why):
    with isolated(name) as reward:
        first = reward._process.pid
        started = time.monotonic()
        result = reward("hang", EXAMPLE)
        assert time.monotonic() - started < 3.0
        assert isinstance(result, Abstained)
        assert why in result.reason
        assert reward("fine", EXAMPLE) == {"score": 1.0}
        assert not alive(first)


def test_what_the_function_started_is_killed_with_it(tmp_path):
    file = tmp_path / "pid"
    with isolated("stubborn") as reward:
        assert "longer" in reward(f"hang {file}", EXAMPLE).reason
        pid = int(file.read_text())
        deadline = time.monotonic() + 5
        while alive(pid) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not alive(pid)


def test_memory_is_limited_and_the_error_named():
    with (
        isolated("hoards", Limits(memory_mb=1024)) as reward,
        pytest.raises(PoloptError, match=r"raised MemoryError on sample 5 \(\"hang\"\)"),
    ):
        reward("hang", EXAMPLE)


def test_a_declared_score_can_stand_in_for_a_late_one():
    with isolated("spins", Limits(seconds=0.5, late={"score": -1.0})) as reward:
        assert reward("hang", EXAMPLE) == {"score": -1.0}


def test_waiting_in_vain_ends():
    with isolated("leaves", Limits(seconds=0.5, give_up=2)) as reward:
        assert isinstance(reward("hang", EXAMPLE), Abstained)
        assert reward("fine", EXAMPLE) == {"score": 1.0}  # which starts the count again
        assert isinstance(reward("hang", EXAMPLE), Abstained)
        with pytest.raises(PoloptError, match=r"2 calls in a row failed.*exited with 3.*sample 5"):
            reward("hang", EXAMPLE)


@pytest.mark.parametrize(
    ("name", "words"),
    [("divides", "raised ZeroDivisionError on sample 5"), ("nothing", "returned None")],
)
def test_errors_cross_the_process_in_one_line(name, words):
    with isolated(name) as reward, pytest.raises(PoloptError, match=words) as caught:
        reward("x", EXAMPLE)
    assert f"{REWARDS}:{name}" in str(caught.value)


def test_a_function_that_cannot_be_loaded_is_known_before_the_run():
    with pytest.raises(PoloptError, match="did you mean 'good'"):
        isolated("goood")


def test_metadata_that_cannot_travel_is_named():
    odd = Example(prompt="", answer="", index=5, metadata={"f": lambda: 0})
    with isolated("good") as reward, pytest.raises(PoloptError, match="the metadata of sample 5"):
        reward("x", odd)


def test_a_child_without_its_parent_ends(tmp_path):
    """Even while its reward hangs in a search that no signal handler can interrupt."""
    script = (
        "import os, sys, threading, time\n"
        "from polopt.tasks import Example, IsolatedReward, Limits\n"
        f"r = IsolatedReward({f'{REWARDS}:backtracks'!r}, Limits(seconds=1.5))\n"
        "print(r._process.pid, flush=True)\n"
        "e = Example(prompt='', answer='', index=0)\n"
        "threading.Thread(target=r, args=('hang', e), daemon=True).start()\n"
        "time.sleep(0.3)\n"
        "os._exit(0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    pid = int(done.stdout)
    deadline = time.monotonic() + 10
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(pid)


@pytest.mark.parametrize("wrong", [{"seconds": 0.0}, {"seconds": -1.0}, {"give_up": 0}])
def test_limits_are_checked(wrong):
    with pytest.raises(PoloptError, match=next(iter(wrong))):
        Limits(**wrong)
