import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cli import fake_loop
from polopt.cli.train import make_sinks, read_arguments, run, stopped_line
from polopt.errors import PoloptError, UsageError
from polopt.train.config import TrainConfig, read_config, to_json
from polopt.train.record import read_metrics
from polopt.train.sinks import Summary

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_run_leaves_its_record_and_says_what_came_of_it(capsys):
    assert run(["--steps", "10", "--eval-every", "5", "--no-plot"], loop=fake_loop.train) == 0
    out, err = capsys.readouterr()
    assert "better: held-out accuracy changed by +30.1 points" in out
    assert "checkpoint  runs/grpo-chain_sum-0/checkpoints/10" in out
    assert err == ""
    rows = read_metrics("runs/grpo-chain_sum-0")
    assert [row["step"] for row in rows] == list(range(11))
    assert [row["step"] for row in rows if "eval/accuracy" in row] == [0, 5, 10]


def test_a_run_is_drawn_unless_told_not_to():
    kinds = [type(sink).__name__ for sink in make_sinks(TrainConfig())]
    assert kinds == ["PlotSink", "PlainProgress"]
    assert make_sinks(TrainConfig(quiet=True, plot=False)) == []


def test_quiet_is_one_line(capsys):
    args = ["--steps", "3", "--eval-every", "3", "--no-plot", "--quiet", "--run", "q"]
    assert run(args, loop=fake_loop.train) == 0
    assert capsys.readouterr().out == (
        "better: held-out accuracy changed by +30.1 points, 95 % interval +21.7 to +37.9 (q)\n"
    )


def test_flags_replace_values_of_a_configuration_and_a_new_run_has_its_own_folder():
    Path("saved.json").write_text(to_json(TrainConfig(prompts=4, run="old", steps=7)))
    config = read_arguments(["--config", "saved.json", "--steps", "9"])
    assert config == TrainConfig(prompts=4, steps=9)
    assert read_arguments(["--config=saved.json", "--resume"]) == TrainConfig(
        prompts=4, run="old", steps=7, resume=True
    )


def test_lists_of_settings_are_read():
    config = read_arguments(["--set", "clip.low=0.1", "clip.high=0.3", "--task-args", "a=1"])
    assert config.hyper == {"clip.low": 0.1, "clip.high": 0.3}
    assert config.task_args == ("a=1",)


def test_sinks_are_closed_when_the_loop_fails(monkeypatch):
    closed = []

    class Sink:
        def close(self):
            closed.append(True)

    def loop(config, *, algorithm, sinks):
        raise PoloptError("no such task")

    monkeypatch.setattr("polopt.cli.train.make_sinks", lambda config: [Sink()])
    with pytest.raises(PoloptError, match="no such task"):
        run([], loop=loop)
    assert closed == [True]


def start(*args, delay):
    return subprocess.Popen(
        [sys.executable, fake_loop.__file__, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "FAKE_DELAY": str(delay)},
    )


def wait_for_steps(folder, steps):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if folder.is_dir() and len(list(folder.iterdir())) >= steps:
            return
        time.sleep(0.02)
    raise AssertionError(f"{folder} did not reach {steps} steps")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_after_the_step_and_the_command_it_prints_goes_on(number, code):
    process = start("--no-plot", "--steps", "40", "--eval-every", "10", delay=0.05)
    wait_for_steps(Path("runs/grpo-chain_sum-0/checkpoints"), 3)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code
    asked, stopped = err.splitlines()
    assert asked.startswith(f"polopt: {number.name}: stopping at the next safe point")
    done = read_metrics("runs/grpo-chain_sum-0")[-1]["step"]
    assert 3 <= done < 40
    command = "polopt train --config runs/grpo-chain_sum-0 --resume"
    assert stopped == (
        f"polopt: stopped after step {done}; the run is in runs/grpo-chain_sum-0; "
        f"continue with: {command}"
    )
    assert run(command.split()[2:], loop=fake_loop.train) == 0
    rows = read_metrics("runs/grpo-chain_sum-0")
    assert [row["step"] for row in rows] == list(range(41))
    assert not read_config("runs/grpo-chain_sum-0").resume


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_signal_stops_at_once(number, code):
    process = start("--no-plot", "--steps", "2", "--run", "slow", delay=30)
    assert process.stdout.readline().startswith("polopt: grpo")  # signals are caught by now
    process.send_signal(number)
    assert "stopping" in process.stderr.readline()
    process.send_signal(number)
    process.communicate(timeout=10)
    # Where the first signal came before the first step, the run is over already and the second
    # one finds the shell's own handling: to a caller the same exit code.
    assert process.returncode in (code, -number)


def test_where_to_go_on_is_safe_to_paste(tmp_path):
    folder = tmp_path / "a b"
    folder.mkdir()
    config = TrainConfig(run=str(folder))
    assert stopped_line(config, None) == "polopt: stopped before the run began"
    (folder / "config.json").touch()
    assert f"--config '{folder}' --resume" in stopped_line(config, 3)


def test_a_stop_without_a_signal_number_is_not_mistaken_for_an_end(tmp_path):
    def loop(config, *, algorithm, sinks):
        return Summary(run=config.folder, steps=2, seconds=1.0, stopped="SIGTERM")

    assert run(["--quiet", "--no-plot"], loop=loop) == 143


def test_an_unknown_method_is_refused_before_anything_is_made(tmp_path):
    with pytest.raises(UsageError, match="did you mean 'grpo'"):
        run(["--algorithm", "grop", "--no-plot"], loop=fake_loop.train)
    assert list(tmp_path.iterdir()) == []
