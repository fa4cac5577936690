"""Several rewards, each normalised in its group."""

import dataclasses

import numpy as np
import pytest

from polopt import PoloptError, Trajectories
from polopt.reward import (
    group_mean_baseline,
    group_std_scale,
    objective_weights,
    outcome_return,
    per_objective_group_norm,
)
from reward.handmade import near, run

ROOT = np.sqrt(0.5)
SCORE, FORM = [1.0, 0.0, 5.0, 5.0], [0.0, 0.1, 0.2, 0.0]


def batch(**parts):
    made = Trajectories.build([[1]] * 4, [[9, 9]] * 4, [0.0] * 4, group=2)
    at = np.eye(3, dtype=np.float32)[2]
    parts = {name: np.array(x, np.float32)[:, None] * at for name, x in parts.items()}
    return dataclasses.replace(made, reward_parts=parts)


def test_parts_that_cancel_in_the_sum_are_told_apart():
    """Each is ±1/√2 in its group, whatever its size; the second group's score is one number."""
    credit = run(batch(score=SCORE, form=FORM), per_objective_group_norm(eps=1e-9)).sequence
    near(credit, [0, 0, ROOT, -ROOT])
    weights = objective_weights({"form": 0.5})
    weighted = run(batch(score=SCORE, form=FORM), per_objective_group_norm(weights, eps=1e-9))
    near(weighted.sequence, [ROOT / 2, -ROOT / 2, ROOT / 2, -ROOT / 2])


def test_one_part_is_grpo():
    """Identity 13 of the catalogue."""
    on = batch(score=SCORE)
    grpo = run(on, outcome_return(), group_mean_baseline(), group_std_scale()).sequence
    near(run(on, per_objective_group_norm()).sequence, grpo)


def test_a_part_that_does_not_exist_is_refused():
    weights = objective_weights({"scor": 1.0})
    with pytest.raises(PoloptError, match="no reward component 'scor'; did you mean 'score'"):
        run(batch(score=SCORE), per_objective_group_norm(weights))
