"""Rewards without labels, counted by hand."""

import dataclasses

import numpy as np

from polopt import Trajectories
from polopt.reward import cluster_probability_reward, majority_vote_reward
from reward.handmade import near, run

GROUP = [0] * 5 + [5] * 4 + [9] * 2
ANSWER = [3, 3, 8, -1, 8, 4, 4, 7, 7, 6, 2]
SCORED = [True] * 4 + [False] + [True] * 6


def batch(**changes):
    """Two of 3 against one 8 that is scored; a tie of 4 and 7; a pair that differs."""
    scores = [0.0 if known else None for known in SCORED]
    made = Trajectories.build([[1]] * 11, [[9]] * 11, scores, group=GROUP)
    answer = {"answer": np.array(ANSWER, np.int32)}
    return dataclasses.replace(made, columns=answer, **changes)


def test_the_most_frequent_answer_is_right():
    near(run(batch(), majority_vote_reward()).sequence[:4], [1, 1, 0, 0])


def test_of_answers_with_equally_many_votes_one_wins_in_any_order_of_rows():
    made = np.asarray(run(batch(), majority_vote_reward()).sequence)[5:]
    near(made, [1, 1, 0, 0, 1, 0])
    backwards = batch(id=np.arange(11, dtype=np.int32)[::-1].copy())
    near(run(backwards, majority_vote_reward()).sequence[5:], [0, 0, 1, 1, 0, 1])


def test_the_reward_is_the_share_of_the_answer():
    """An answer that is none shares with nobody, but is one of the group."""
    made = run(batch(), cluster_probability_reward()).sequence
    near(made[:4], [2 / 4, 2 / 4, 1 / 4, 0])
    near(made[5:], [0.5, 0.5, 0.5, 0.5, 0, 0])  # where all differ there is nothing to follow
