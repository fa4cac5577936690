import dataclasses
import io
import json
from pathlib import Path

import pytest

from polopt.cli import sft
from polopt.cli.sample import read_arguments
from polopt.errors import UsageError
from polopt.train.config import SampleConfig, to_json
from polopt.train.plots import plot_losses
from polopt.train.record import open_record
from polopt.train.sft_config import SftConfig, find_run
from polopt.train.sft_progress import LossProgress
from polopt.train.sinks import Fanout, Summary


def metrics(loss):
    return {"supervised/loss": loss, "time/step": 0.5, "update/grad_norm": 1.0}


def loop(config, *, sinks, steps=40, stopped=None):
    """A run without a model."""
    config = dataclasses.replace(config, run=str(config.folder), system="Add.", max_new_tokens=9)
    with open_record(config) as record:
        sink = Fanout([record, *sinks])
        sink.start(config, {"steps": 40, "rows": 320})
        for step in range(1, steps + 1):
            sink.step(step, metrics(2.0 / step))
        summary = Summary(
            run=record.path,
            steps=steps,
            seconds=20.0,
            first=metrics(2.0),
            last=metrics(2.0 / steps),
            stopped=stopped,
        )
        sink.finish(summary)
    return summary


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_run_shows_its_loss_and_what_to_do_next(capsys):
    assert sft.run(["--task", "leg_counting", "--batch", "8"], loop) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "base on leg_counting: 320 rows, 40 steps of 8, all weights"
    steps = [line for line in lines if line.startswith("step ")]
    assert steps[0] == "step 1/40  loss 2.0000  0.5 s/step  0:20 left"
    assert steps[-1] == "step 40/40  loss 0.0500  0.5 s/step  0:00 left"
    assert len(steps) == 21
    assert "improve it:  polopt train --model runs/sft-leg_counting-0" in lines
    assert Path("runs/sft-leg_counting-0/plots/run.png").stat().st_size > 1000


def test_a_terminal_has_one_moving_line():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    loop(SftConfig(task="gcd"), sinks=[LossProgress(screen)])
    text = screen.getvalue()
    assert text.count("\r\x1b[2Kstep ") == 40
    assert text.count("\n") == 6


def test_a_quiet_run_says_one_line(capsys):
    assert sft.run(["--task", "gcd", "--quiet", "--no-plot"], loop) == 0
    line = "loss 2.000 -> 0.050 nats per token (runs/sft-gcd-0)\n"
    assert capsys.readouterr().out == line


def test_a_stopped_run_says_how_to_go_on(capsys):
    def stops(config, *, sinks):
        return loop(config, sinks=sinks, steps=3, stopped="SIGTERM")

    assert sft.run(["--task", "gcd", "--no-plot"], stops) == 143
    err = capsys.readouterr().err
    assert err.startswith("polopt: stopped after step 3; the run is in runs/sft-gcd-0, usable")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"task": "gcd", "data": "x.jsonl"}, "two sources of rows"),
        ({"task": "gcd", "batch": 0}, "batch must be at least 1, not 0"),
        ({"task": "gcd", "quantise": "int8"}, "give --lora-rank too"),
        ({"data": "x.jsonl", "task_args": ("a=1",)}, "data replaces it"),
        ({"task": "gcd", "solution": "long"}, "solution must be one of worked, answer"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, words):
    with pytest.raises(UsageError, match=words):
        SftConfig(**settings)


def test_a_run_brings_its_task_to_an_evaluation():
    sft.run(["--task", "gcd", "--quiet", "--no-plot", "--task-args", "max_num=9"], loop)
    found = find_run("runs/sft-gcd-0")
    assert isinstance(found, SftConfig)
    assert json.loads(to_json(found))["command"] == "sft"
    config = read_arguments(["runs/sft-gcd-0"], SampleConfig(), "eval", "")
    assert (config.task, config.task_args) == ("gcd", ("max_num=9",))
    assert (config.system, config.max_new_tokens) == ("Add.", 9)
    config = read_arguments(["runs/sft-gcd-0", "--system", "Be brief."], SampleConfig(), "eval", "")
    assert config.system == "Be brief."


def test_the_folder_of_a_model_is_no_run(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama", "hidden_size": 16}')
    config = read_arguments([str(tmp_path)], SampleConfig(), "eval", "")
    assert (config.task, config.max_new_tokens) == ("chain_sum", 32)


def test_a_run_without_metrics_has_no_picture(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match="no metrics yet"):
        plot_losses(tmp_path)
