"""A run whose rollouts are episodes, from rollout to checkpoint."""

import json

import pytest

from polopt.algorithms import mt_grpo, treepo
from polopt.tasks.environment import Environment, Reply
from train import toy


def step(state, text):
    """Add a letter after a turn that ends in a stop; short turns earn something."""
    done = not text.endswith(("a", "e", "o"))
    return Reply(state=state + 1, text="c", rewards={"tool": 0.5 * (len(text) < 3)}, done=done)


ENVIRONMENT = Environment(
    start=lambda example: 0,
    step=step,
    label=str,
    stop=("a", "e", "o"),
    parts=("tool",),
    max_turns=3,
    turn_tokens=5,
    observation_tokens=1,
)


def settings(**changes):
    return toy.config(steps=2, max_new_tokens=8, group_size=4, eval_every=1, **changes)


@pytest.mark.slow
def test_a_run_of_episodes_is_paid_by_turns_and_resumes(tmp_path):
    run = toy.make_run(mt_grpo(), settings(), toy.task(environment=ENVIRONMENT))
    toy.go(run, tmp_path / "straight")
    lines, samples = toy.left_behind(tmp_path / "straight")
    assert [line["step"] for line in lines if "eval/accuracy" in line] == [0, 1, 2]
    trained = [line for line in lines if line["step"] and "reward/mean" in line]
    assert all(line["reward/part/tool"] > 0 for line in trained)
    assert all(line["rollout/logp_gap_max"] < 1e-5 for line in trained)
    shown = [json.loads(line)["completion"] for line in samples.splitlines()]
    assert any("⟨c⟩" in text for text in shown)

    def stop_after(step):
        if step == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        toy.go(run, tmp_path / "resumed", toy.Each(stop_after))
    toy.go(run, tmp_path / "resumed")
    assert toy.left_behind(tmp_path / "resumed") == (lines, samples)


def test_a_method_of_trees_needs_the_task_that_it_is_made_for():
    with pytest.raises(ValueError, match=r"toy has an environment"):
        toy.make_run(treepo(), settings(), toy.task(environment=ENVIRONMENT))
