"""Agreement rewards against literals worked out by hand."""

import math

import numpy as np
import pytest

from . import agreement
from .handmade import outcomes


def voters(answer, group=None, **fields):
    return outcomes([0.3] * len(answer), group or [0] * len(answer), answer=answer, **fields)


def test_majority_by_hand():
    batch = voters([2, 5, 5, -1, -1, -1])
    assert agreement.majority_answer(batch, 0) == 5
    assert agreement.majority_reward(batch).tolist() == [0, 1, 1, 0, 0, 0]
    assert not agreement.majority_reward(voters([-1, -1])).any()


def test_answers_are_compared_within_a_group_and_abstentions_do_not_vote():
    batch = voters([1, 2, 2, 1, 1, 2], [0, 0, 0, 1, 1, 1], scored=[True, True, False] + [True] * 3)
    assert agreement.majority_reward(batch).tolist() == [1, 0, 0, 1, 1, 0]


def test_of_equal_votes_the_first_seen_wins():
    assert agreement.majority_reward(voters([7, 3, 3, 7])).tolist() == [1, 0, 0, 1]
    assert agreement.majority_reward(voters([3, 7, 3, 7])).tolist() == [1, 0, 1, 0]


def test_ttrl_credit_by_hand():
    batch = voters([4, 4, 1])
    credit = agreement.ttrl(batch, eps=0.0).credit[:, 1]
    np.testing.assert_allclose(credit, np.array([1, 1, -2]) / math.sqrt(3))
    assert not agreement.ttrl(voters([4, 4])).credit.any()


def test_cluster_probability_by_hand():
    batch = voters([4, 4, 1, -1])
    assert agreement.cluster_probability(batch).tolist() == [0.5, 0.5, 0.25, 0]
    credit = agreement.empo(batch, eps=0.0).credit[:, 1]
    std = np.std([0.5, 0.5, 0.25, 0], ddof=1)
    np.testing.assert_allclose(credit, (np.array([0.5, 0.5, 0.25, 0]) - 0.3125) / std)


def test_semantic_entropy_by_hand():
    half = -0.5 * math.log(0.5)
    assert agreement.semantic_entropy(voters([4, 4, 1, -1]), 0) == pytest.approx(
        half + 2 * 0.25 * math.log(4)
    )
    assert agreement.semantic_entropy(voters([-1, -1]), 0) == pytest.approx(math.log(2))
    assert agreement.semantic_entropy(voters([6, 6]), 0) == 0


def test_empo_window_drops_groups_from_the_denominator():
    batch = voters([4, 4, 1, 2, 3, 3], [0, 0, 0, 1, 1, 1][:6])
    apart = voters([4, 4, 1, 1, 2, 3], [0, 0, 0, 1, 1, 1])
    window = (0.1, 1.0)  # entropies 0.64 and log 3 = 1.10
    weight = agreement.empo(apart, window=window).weight.sum(axis=1)
    np.testing.assert_allclose(weight, [1 / 3] * 3 + [0] * 3)
    np.testing.assert_allclose(agreement.empo(batch, window=window).weight.sum(axis=1), 1 / 6)


def test_agreement_losses_clip_and_can_have_a_penalty():
    batch = voters([4, 4, 1])
    up = np.full((3, 2), math.log(1.5))
    unit = 1 / math.sqrt(3)
    policy = -(2 * 1.2 - 2 * 1.5) * unit / 3
    assert agreement.ttrl(batch, eps=0.0).loss(up) == pytest.approx(policy)
    penalty = 1 / 1.5 - 1 + math.log(1.5)
    assert agreement.ttrl(batch, eps=0.0, beta=0.5).loss(up) == pytest.approx(
        policy + 0.5 * penalty
    )
