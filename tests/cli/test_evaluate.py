import json

import pytest

from polopt.cli import evaluate, pretrain, sample
from polopt.cli.evaluate import measure
from polopt.cli.sample import read_arguments
from polopt.errors import PoloptError
from polopt.train.config import SampleConfig, TrainConfig, to_json
from polopt.train.sinks import SampleView


def view(correct, stop="EOS", completion="1"):
    return SampleView(
        prompt="p",
        completion=completion,
        answer="1",
        reward=float(bool(correct)),
        stop=stop,
        correct=correct,
    )


def test_accuracy_interval_and_pass_at_k_by_hand():
    problems = [[view(True), view(False)], [view(False), view(False, "LENGTH")]]
    result = measure(problems)
    # Wilson for a rate of 1/4 in n = 2: (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n).
    z = 1.959963984540054
    half = z * (0.25 * 0.75 / 2 + z * z / 16) ** 0.5
    assert result == pytest.approx(
        {
            "problems": 2,
            "samples": 2,
            "accuracy": 0.25,
            "truncated": 0.25,
            "pass@1": 0.25,
            "pass@2": 0.5,
            "low": (0.25 + z * z / 4 - half) / (1 + z * z / 2),
            "high": (0.25 + z * z / 4 + half) / (1 + z * z / 2),
        }
    )


def test_pass_at_k_goes_up_in_powers_of_two():
    keys = [k for k in measure([[view(True)] * 6]) if k.startswith("pass@")]
    assert keys == ["pass@1", "pass@2", "pass@4"]


@pytest.mark.parametrize(
    ("problems", "words"),
    [
        ([], "same number of samples"),
        ([[view(True)], []], "same number of samples"),
        ([[view(None)]], "verdict on every completion"),
    ],
)
def test_what_has_no_accuracy_is_refused(problems, words):
    with pytest.raises(PoloptError, match=words):
        measure(problems)


def test_eval_prints_the_accuracy_with_its_interval(capsys):
    asked = []

    def complete(config):
        asked.append(config)
        return [[view(True)]] * 69 + [[view(False)]] * 187

    assert evaluate.run(["base", "--task", "leg_counting", "--seed", "3"], complete) == 0
    assert asked == [SampleConfig(model="base", task="leg_counting", seed=3, max_new_tokens=32)]
    out = capsys.readouterr().out
    assert "base on leg_counting: 256 problems\n" in out
    assert "accuracy   27.0 %  (95 % interval 21.9 to 32.7)" in out
    assert "pass@" not in out


def test_eval_for_programs(capsys):
    assert evaluate.run(["--json", "--samples", "2"], lambda c: [[view(True), view(False)]]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["model"] == "base"
    assert result["task"] == "chain_sum"
    assert (result["accuracy"], result["pass@2"]) == (0.5, 1.0)


def test_the_folder_of_a_run_brings_what_it_trained_on(tmp_path):
    trained = TrainConfig(
        task="leg_counting", task_args=("max_animals=3",), max_new_tokens=9, reward="r.py:f"
    )
    (tmp_path / "config.json").write_text(to_json(trained))
    folder = str(tmp_path)

    def asked(*args):
        return read_arguments([folder, *args], SampleConfig(), "eval", "")

    assert asked() == SampleConfig(
        model=folder,
        task="leg_counting",
        max_new_tokens=9,
        task_args=("max_animals=3",),
        reward="r.py:f",
    )
    harder = asked("--task-args", "max_animals=8")
    assert (harder.task, harder.task_args) == ("leg_counting", ("max_animals=8",))
    other = asked("--task", "chain_sum", "--max-new-tokens", "5")
    assert (other.task, other.task_args, other.reward) == ("chain_sum", (), None)
    assert other.max_new_tokens == 5


def test_samples_are_printed_safely(capsys):
    views = [[view(False, completion="\x1b[2J[bold]\n7"), view(True)]]
    assert sample.run(["--samples", "2"], lambda c: views) == 0
    assert capsys.readouterr().out == (
        "prompt: p\nanswer: 1\n  wrong (EOS): \ufffd[2J[bold]⏎7\n  right (EOS): 1\n"
    )


def test_samples_for_programs(capsys):
    assert sample.run(["--json"], lambda c: [[view(True)]]) == 0
    assert json.loads(capsys.readouterr().out)["completion"] == "1"


def test_sampling_asks_for_three_problems_unless_told():
    asked = []
    sample.run([], lambda c: asked.append(c) or [])
    assert asked[0].problems == 3


def test_pretraining_refuses_a_folder_that_is_there(tmp_path, capsys):
    assert pretrain.run(["--out", str(tmp_path / "new")], lambda c: tmp_path / "new") == 0
    assert capsys.readouterr().out == f"model  {tmp_path / 'new'}\n"
    with pytest.raises(PoloptError, match="exists already"):
        pretrain.run(["--out", str(tmp_path)], lambda c: tmp_path)
