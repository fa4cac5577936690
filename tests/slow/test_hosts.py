"""Two processes of four devices on the loopback: they train as one, and end when one is gone."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest
from compiling import FLAGS
from train import host, toy

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

LOST = 10  # seconds after which a silent process is taken for lost
SLACK = 30  # for a machine that has other things to do
SETTINGS = [
    *("--prompts", "5", "--max-new-tokens", "4", "--eval-problems", "3", "--eval-every", "2"),
    *("--checkpoint-every", "1", "--learning-rate", "1e-2", "--warmup", "2", "--no-plot"),
]
MESH = ("--parallel", "mesh", "--mesh", "data=2", "fsdp=2", "tensor=2")


class Host:
    """A process of the toy world, with what it says in files."""

    def __init__(self, folder, *args, devices):
        flags = [f"--xla_force_host_platform_device_count={devices}", *FLAGS]
        self._out = folder.with_name(f"{folder.name}-{time.monotonic_ns()}.out")
        self._err = self._out.with_suffix(".err")
        with open(self._out, "wb") as out, open(self._err, "wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, host.__file__, *SETTINGS, "--run", str(folder), *args],
                stdout=out,
                stderr=err,
                env=os.environ
                | {
                    "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
                    "XLA_FLAGS": " ".join(flags),
                    "JAX_PLATFORMS": "cpu",
                    "JAX_COMPILATION_CACHE_DIR": str(folder.parent / "programs"),
                    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                },
            )

    @property
    def worker(self):
        """The process id of the worker that it started."""
        pid = self.process.pid
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])

    def end(self, seconds):
        """Its exit code, standard output and standard error."""
        code = self.process.wait(timeout=seconds)
        return code, self._out.read_text(), self._err.read_text()


@pytest.fixture
def start(tmp_path):
    """Starts a run: alone with eight devices, or as a pair of four; all are ended at last."""
    hosts = []

    def begin(name, *args, only=(0, 1), alone=False):
        if alone:
            made = [Host(tmp_path / name, *args, devices=8)]
        else:
            with contextlib.closing(socket.socket()) as free:
                free.bind(("127.0.0.1", 0))
                where = ("--coordinator", f"127.0.0.1:{free.getsockname()[1]}")
            among = (*where, "--num-processes", "2", "--lost-timeout", str(LOST))
            made = [
                Host(tmp_path / name, *args, *among, "--process-id", str(i), devices=4)
                for i in only
            ]
        hosts.extend(made)
        return made

    yield begin
    for each in hosts:
        if each.process.poll() is None:
            each.process.kill()  # its worker ends with it
            each.process.wait()


def wait_for_step(folder, step, *hosts):
    deadline = time.monotonic() + 240
    while not (folder / "checkpoints" / f"{step:08d}").is_dir():
        assert time.monotonic() < deadline
        for each in hosts:
            assert each.process.poll() is None, each.end(1)
        time.sleep(0.02)


def state(folder, step):
    path = (folder / "checkpoints" / f"{step:08d}" / "state").absolute()
    with ocp.PyTreeCheckpointer() as checkpointer:
        names = checkpointer.metadata(path).item_metadata.tree
        whole = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names}
        return checkpointer.restore(path, restore_args=whole)


@pytest.mark.parametrize(
    ("args", "forms"),
    [
        (
            ("--algorithm", "entropy_top_quantile", "--group-size", "4", "--micro-batch", "2"),
            {"pmap": ()},
        ),
        (
            ("--algorithm", f"{toy.__file__}:remembering"),
            {"pmap": ("--pack", "always"), "mesh": (*MESH, "--lanes", "8")},
        ),
    ],
    ids=["coupled", "memory"],
)
def test_two_processes_train_as_one(tmp_path, start, args, forms):
    """One with copies on its eight devices, whatever the form of the two."""
    steps = ("--steps", "4")
    (whole,) = start("one", *args, *steps, alone=True)
    assert whole.end(400)[0] == 0, whole.end(1)
    for name, form in forms.items():
        first, second = (each.end(400) for each in start(name, *args, *steps, *form))
        assert (first[0], second[0]) == (0, 0), (first, second)
        assert "better" in first[1] or "held-out" in first[1]
        assert second[1:] == ("", "")
        assert_same(tmp_path / "one", tmp_path / name)


def assert_same(one, two):
    """The same tokens; losses, all other numbers, and parameters but for rounding."""
    (lines, samples), (lines2, samples2) = (toy.left_behind(folder) for folder in (one, two))
    assert samples == samples2
    assert len(lines) == len(lines2) == 5
    for a, b in zip(lines, lines2, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_allclose(b[name], a[name], rtol=1e-5, atol=1e-5, err_msg=name)
    one, two = state(one, 4), state(two, 4)
    assert one.keys() == two.keys()
    assert any(name.startswith("params.policy") for name in one)
    for name in one:
        np.testing.assert_allclose(two[name], one[name], rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(("victim", "form"), [(0, ()), (1, MESH)], ids=["pmap", "mesh"])
def test_a_killed_process_ends_the_other_and_both_go_on_from_the_last_step(
    tmp_path, start, victim, form
):
    args = ("--steps", "8", "--algorithm", "grpo", "--group-size", "4", *form)
    pair = start("run", *args)
    wait_for_step(tmp_path / "run", 2, *pair)
    os.kill(pair[victim].worker, signal.SIGKILL)
    killed = pair[victim].end(SLACK)
    start_of_wait = time.monotonic()
    other = pair[1 - victim].end(LOST + SLACK)
    assert time.monotonic() - start_of_wait < LOST + SLACK
    assert killed[0] == 128 + signal.SIGKILL
    assert killed[2].startswith(f"polopt: process {victim} of 2 was killed (SIGKILL)")
    assert other[0] != 0
    assert other[2].startswith(f"polopt: process {1 - victim} of 2 ended because ")
    for said in (killed[2], other[2]):
        assert said.count("\n") == 1
        assert "--resume" in said

    committed = max(int(p.name) for p in (tmp_path / "run/checkpoints").glob("[0-9]" * 8))
    assert 2 <= committed < 8
    again = start("run", *args, "--resume")
    assert [each.end(400)[0] for each in again] == [0, 0]
    assert json.loads((tmp_path / "run/info.json").read_text())["resumed_from"] == committed
    undisturbed = start("whole", *args)
    assert [each.end(400)[0] for each in undisturbed] == [0, 0]
    assert toy.left_behind(tmp_path / "run") == toy.left_behind(tmp_path / "whole")


@pytest.mark.parametrize(("there", "words"), [(0, "process 1 of 2"), (1, "process 0 did not")])
def test_a_process_that_does_not_come_is_named_in_time(start, there, words):
    began = time.monotonic()
    (lonely,) = start("run", "--start-timeout", "5", only=[there])
    code, out, err = lonely.end(5 + SLACK)
    assert time.monotonic() - began > 5
    assert (code, out) == (1, "")
    assert err.startswith("polopt: ")
    assert words in err
    assert "within 5 s" in err
    assert err.count("\n") == 1


def test_a_stop_of_one_stops_both_after_the_same_step(tmp_path, start):
    args = ("--steps", "400", "--algorithm", "grpo", "--group-size", "4")
    pair = start("run", *args)
    wait_for_step(tmp_path / "run", 2, *pair)
    pair[1].process.send_signal(signal.SIGTERM)
    first, second = (each.end(60 + SLACK) for each in pair)
    assert (first[0], second[0]) == (143, 143)
    assert "stopped after step" in first[2]
    assert "stopping at the next safe point" in second[2]
    done = max(int(p.name) for p in (tmp_path / "run/checkpoints").glob("[0-9]" * 8))
    assert f"stopped after step {done};" in first[2]


def test_what_the_first_one_refuses_is_said_by_both(tmp_path, start):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "stranger").touch()
    pair = start("run", "--steps", "2")
    for code, _, err in (each.end(120) for each in pair):
        assert code == 1
        assert "is not empty and holds no run" in err
        assert err.count("\n") == 1
