"""Metrics of a rollout against numbers worked out by hand."""

import dataclasses

import numpy as np
import pytest

from polopt.rollout.measure import correct, outcome, rollout_metrics
from polopt.train.record import unknown_keys
from polopt.types import Stop, Trajectories


def batch(rewards, correct=None, **changes):
    """Six rows in groups of two; completions of 1, 2 or 3 tokens, log-probability −length/4."""
    lengths = [1, 2, 3, 1, 2, 3]
    parts = {"score": rewards}
    if correct is not None:
        parts["correct"] = correct
    made = Trajectories.build(
        [[5]] * 6,
        [[7] * n for n in lengths],
        parts,
        group=2,
        logp_sampler=[[-n / 4] * n for n in lengths],
        width=6,
        stop=[Stop.EOS, Stop.EOS, Stop.LENGTH, Stop.EOS, Stop.TURN_LIMIT, Stop.STOP_TOKEN],
    )
    return dataclasses.replace(made, **changes)


def test_metrics_by_hand():
    keep = np.where(batch([0] * 6).action_mask, np.float32(-0.5), 0)
    metrics = rollout_metrics(batch([1, 0, 0.5, 0.5, 1, 1], log_keep=keep))
    expected = {
        "reward/mean": 4 / 6,
        "reward/std": np.sqrt(3.5 / 6 - (4 / 6) ** 2),
        "reward/unscored": 0,
        "rollout/length": 2,
        "rollout/length_max": 3,
        "rollout/truncated": 2 / 6,
        "rollout/tokens": 12,
        "rollout/turns": 1,
        "rollout/tool_errors": 0,
        "reward/part/score": 4 / 6,
        # −mean over tokens of (sampler + kept): lengths 1, 2, 3 twice, n tokens of n/4 each
        "policy/entropy": 0.5 + 2 * (1 + 4 + 9) / 4 / 12,
        "groups/zero_spread": 2 / 3,
        "groups/solved": 1 / 3,
        "groups/unsolved": 1 / 3,
    }
    assert metrics == pytest.approx(expected, rel=1e-6)
    assert unknown_keys(metrics) == []
    assert all(type(value) in (float, int) for value in metrics.values())


def test_rows_without_a_score_are_left_out_of_rewards_and_spreads():
    metrics = rollout_metrics(batch([1, None, 0.5, None, None, None]))
    assert metrics["reward/mean"] == 0.75
    assert metrics["reward/std"] == 0.25
    assert metrics["reward/unscored"] == pytest.approx(4 / 6)
    assert metrics["reward/part/score"] == 0.75
    assert metrics["groups/zero_spread"] == 1  # one known reward, or none, has no spread
    assert metrics["groups/solved"] == 0
    assert metrics["groups/unsolved"] == pytest.approx(2 / 3)


def test_turns_and_tool_errors_are_counted():
    made = batch([1] * 6, stop=np.array([Stop.TOOL_ERROR] * 3 + [Stop.EOS] * 3))
    made.turn[2, 2:4] = [1, 2]  # of the three tokens that row 2 wrote
    metrics = rollout_metrics(made)
    assert metrics["rollout/tool_errors"] == 0.5
    assert metrics["rollout/turns"] == (5 * 1 + 3) / 6


def test_nothing_scored_is_zero_and_no_warning():
    metrics = rollout_metrics(batch([None] * 6))
    assert (metrics["reward/mean"], metrics["reward/part/score"]) == (0, 0)
    assert metrics["reward/unscored"] == 1


def test_groups_of_one_have_no_group_metrics():
    made = batch([0] * 6, group=np.arange(6, dtype=np.int32))
    assert not any(name.startswith("groups/") for name in rollout_metrics(made))


def test_correct_is_its_own_component_or_a_whole_reward_of_one():
    assert correct(batch([1, 0.99, 2, 0, 1, None])).tolist() == [1, 0, 1, 0, 1, 0]
    judged = batch([5, 5, 0, 0, 0, 5], correct=[0, 1, 1, 0, 0, None])
    assert correct(judged).tolist() == [0, 1, 1, 0, 0, 0]
    assert outcome(judged).tolist() == [5, 6, 1, 0, 0, 5]


def test_parts_that_make_one_but_for_rounding_are_right():
    made = batch([0.1] * 6)
    parts = {str(x): made.reward_parts["score"] * np.float32(10 * x) for x in (0.1, 0.2, 0.7)}
    whole = dataclasses.replace(made, reward_parts=parts)
    assert outcome(whole).max() < 1
    assert correct(whole).all()


def test_rows_of_another_model_are_sampled_but_say_nothing_of_the_policy():
    version = np.zeros((6, 6), np.int32)
    version[[0, 1]] = -1  # the first group is the teacher's
    mixed = rollout_metrics(batch([1, 1, 0, 1, 0, 0], version=version))
    assert mixed["reward/mean"] == 1 / 4
    assert mixed["rollout/length"] == (3 + 1 + 2 + 3) / 4
    assert mixed["groups/zero_spread"] == 1 / 2
    assert mixed["rollout/tokens"] == 12
    nowhere_alone = batch([1, 1, 0, 1, 0, 0], version=np.full((6, 6), -1, np.int32))
    assert rollout_metrics(nowhere_alone) == rollout_metrics(batch([1, 1, 0, 1, 0, 0]))
