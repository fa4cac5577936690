import pytest

from cli import fake_loop
from polopt.cli.processes import read_topology
from polopt.cli.train import run
from polopt.errors import PoloptError, UsageError
from polopt.launch.topology import COORDINATOR, COUNT, INDEX, Topology


@pytest.fixture(autouse=True)
def _alone(monkeypatch, tmp_path):
    for name in (COORDINATOR, COUNT, INDEX):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def test_flags_win_over_the_environment_and_the_rest_stays(monkeypatch):
    monkeypatch.setenv(COORDINATOR, "other:1")
    monkeypatch.setenv(COUNT, "4")
    argv = ["--steps", "3", "--process-id=2", "--coordinator", "host:8476", "--quiet"]
    among, rest = read_topology(argv)
    assert among == Topology(coordinator="host:8476", count=4, index=2)
    assert rest == ["--steps", "3", "--quiet"]


def test_bad_arguments_are_refused_before_a_worker_starts(monkeypatch):
    monkeypatch.setattr("polopt.cli.train.supervise", lambda *args: pytest.fail("started"))
    with pytest.raises(UsageError, match="steps must be at least 1"):
        run(["--coordinator", "h:1", "--num-processes=2", "--process-id=0", "--steps", "0"])
    with pytest.raises(UsageError, match="--process-id is missing"):
        run(["--coordinator", "h:1", "--num-processes=2"])


def test_processes_that_are_missing_are_named_before_a_worker_starts(monkeypatch):
    monkeypatch.setattr("polopt.cli.train.supervise", lambda *args: pytest.fail("started"))
    argv = ["--coordinator", "127.0.0.1:1", "--num-processes=2", "--process-id=1"]
    with pytest.raises(PoloptError, match=r"process 0 did not answer at 127.0.0.1:1 within 1 s"):
        run([*argv, "--start-timeout", "1"])


def test_a_run_of_several_is_a_worker_with_the_other_arguments(monkeypatch):
    seen = []
    monkeypatch.setattr("polopt.cli.train.roll_call", lambda among: seen.append(among))
    monkeypatch.setattr("polopt.cli.train.supervise", lambda *args: seen.append(args) or 7)
    argv = ["--steps", "3", "--coordinator", "h:1", "--num-processes=2", "--process-id=1"]
    assert run(argv, loop=fake_loop.train, command=["again"]) == 7
    among = Topology(coordinator="h:1", count=2, index=1)
    assert seen == [among, (["again", "--steps", "3"], among)]
