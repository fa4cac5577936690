"""What length and entropy add."""

import dataclasses

import numpy as np

from polopt import Trajectories
from polopt.reward import (
    entropy_shaping,
    group_mean_baseline,
    length_penalty,
    outcome_return,
    reward_to_go,
)
from reward.handmade import near, run


def batch(**changes):
    """Right rows of 1 and 3 tokens, wrong ones of 2 and 5; two rows of one length."""
    lengths = [1, 3, 2, 5, 2, 2]
    made = Trajectories.build(
        [[1]] * 6,
        [[9] * length for length in lengths],
        [1.0, 1.0, 0.0, 0.0, 1.0, 0.0],
        group=[0, 0, 0, 0, 4, 4],
        width=7,
    )
    return dataclasses.replace(made, **changes)


def test_length_penalty():
    """λ of lengths 1, 3, 2, 5 is 1/2, 0, 1/4, -1/2, and only the last is taken from the wrong."""
    near(run(batch(), outcome_return(), length_penalty()).sequence, [1.5, 1, 0, -0.5, 1, 0])
    near(run(batch(), outcome_return(), length_penalty(0.1)).sequence, [1.05, 1, 0, -0.05, 1, 0])


def test_the_length_of_a_row_without_a_score_does_not_count():
    on = batch(scored=np.array([1, 1, 1, 0, 1, 1], bool))
    near(run(on, outcome_return(), length_penalty()).sequence[:3], [1.5, 0.5, 0])


def test_entropy_is_added_up_to_a_share_of_the_credit():
    """The credit is ±1/2, of which a half at most."""
    entropy = np.full((6, 7), 0.5, np.float32)
    entropy[1] = 4.0
    on = batch(columns={"entropy": entropy})
    made = run(on, outcome_return(), group_mean_baseline(), entropy_shaping()).value
    near(made[:4, 1], [0.5 + 0.2, 0.5 + 0.25, -0.5 + 0.2, -0.5 + 0.2])
    to_go = run(on, reward_to_go(), entropy_shaping(1.0, 1.0)).value
    near(to_go[1:3, 1], [2, 0])
