"""Held-out evaluation by hand, and what a person is shown."""

import numpy as np
import pytest

from polopt.rollout.collect import Collector, Cursor, Writers
from polopt.rollout.lanes import Generated
from polopt.tasks import abstain
from polopt.train.evaluate import complete_all, evaluation, views
from polopt.train.record import unknown_keys
from polopt.trajectory import Sampling
from polopt.types import Stop
from train import toy

ANSWERS = ["ab", "zz", "aa", "xyzw", "a"]  # two early letters are right


def collector(**changes):
    problems = tuple(toy.example(i, i) for i in range(5))
    task = toy.task(held_out=problems, train=lambda i: problems[i % 5], **changes)
    return Collector(
        task=task,
        tokenizer=toy.Letters(),
        sampling=Sampling(group_size=1),
        max_new_tokens=4,
        max_length=32,
        temperature=1.0,
    )


def answering(tokens, lengths, ids):
    letters = toy.Letters().letters
    texts = [ANSWERS[i % 5] for i in ids.reshape(-1)]
    rows = [[letters.index(c) for c in text] + [1] * (len(text) < 4) for text in texts]
    tokens = np.zeros((len(rows), 4), np.int32)
    for row, text in zip(tokens, rows, strict=True):
        row[: len(text)] = text
    stop = [Stop.EOS if len(text) < 4 else Stop.LENGTH for text in texts]
    zero = np.zeros((len(rows), 4), np.float32)
    return Generated(
        tokens=tokens,
        length=np.array([len(row) for row in rows], np.int32),
        logp_sampler=zero,
        log_keep=zero,
        stop=np.array(stop, np.int32),
    )


def test_an_evaluation_by_hand():
    made = collector()
    metrics, shown = evaluation(made, answering, made.task.held_out, 2)
    assert metrics == pytest.approx(
        {
            "eval/accuracy": 2 / 5,
            "eval/accuracy_low": 0.11762,
            "eval/accuracy_high": 0.76928,  # Wilson 1927: 2 of 5
            "eval/problems": 5,
            "eval/reward": (2 + 0.1 * (2 + 2 + 2 + 0 + 3)) / 5,
            "eval/length": (3 + 3 + 3 + 4 + 2) / 5,
            "eval/truncated": 1 / 5,
        },
        rel=1e-4,
    )
    assert unknown_keys(metrics) == []
    assert [(v.prompt, v.completion, v.stop, v.correct) for v in shown] == [
        ("a", "ab", "EOS", True),
        ("bc", "zz", "EOS", False),
    ]
    assert shown[0].reward == pytest.approx(1.2)


def test_more_are_shown_than_there_are():
    made = collector()
    assert len(evaluation(made, answering, made.task.held_out[:2], 4)[1]) == 2


def test_an_abstention_is_not_right_and_still_a_problem():
    made = collector(reward=lambda text, _: abstain("?") if text == "ab" else {"score": 1.0})
    metrics, _ = evaluation(made, answering, made.task.held_out, 0)
    assert metrics["eval/accuracy"] == pytest.approx(4 / 5)


def test_several_completions_of_a_problem_have_ids_of_their_own():
    made = collector()
    trajectories, texts = complete_all(made, answering, made.task.held_out[:2], 3)
    assert trajectories.id.tolist() == list(range(6))
    assert texts == [ANSWERS[i % 5] for i in range(6)]
    assert trajectories.prompt.tolist() == [0, 0, 0, 1, 1, 1]


def test_views_of_a_rollout():
    rollout = collector().collect(Writers(policy=answering), 4, Cursor(row=1))
    shown = views(rollout, [0, 3])
    assert [v.completion for v in shown] == ["zz", "a"]
    assert [v.prompt for v in shown] == [rollout.examples[0].prompt, rollout.examples[3].prompt]
