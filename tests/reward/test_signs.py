"""Right and wrong samples apart: what weighs, and what leaves the batch."""

import dataclasses

import jax
import numpy as np

from polopt import Algorithm, Trajectories, chain, prepare
from polopt.aggregate import token_mean
from polopt.reward import asymmetric_scale, keep_negative, keep_positive, outcome_return
from polopt.trajectory import policy_gradient
from reward.handmade import near, run


def batch(**changes):
    made = Trajectories.build(
        [[1]] * 4, [[5, 6], [7], [8, 9, 10], [5]], [1.0, 0.0, 0.0, 1.0], group=2, width=4
    )
    return dataclasses.replace(made, **changes)


def test_right_and_wrong_have_one_number_each():
    near(run(batch(), outcome_return(), asymmetric_scale()).sequence, [0.1, -1, -1, 0.1])
    scaled = asymmetric_scale(2.0, 3.0, above=1.5)
    near(run(batch(), outcome_return(), scaled).sequence, [-3] * 4)


def test_what_is_left_out_is_in_no_denominator():
    """Three tokens are right and four wrong; the third row has no score."""

    def prepared(*pieces):
        on = batch(scored=np.array([1, 1, 0, 1], bool))
        method = Algorithm(
            reward=chain(outcome_return(), *pieces),
            trajectory=chain(policy_gradient()),
            aggregate=token_mean(),
        )
        rows = jax.jit(lambda on: prepare(method, on)[0].rows)(on)
        return np.asarray(rows.weights["policy"]), np.asarray(rows.credit)

    weight, credit = prepared(keep_positive(), asymmetric_scale(1.0))
    near(weight[[0, 0, 3], [1, 2, 1]], [1 / 3] * 3)
    near([weight.sum(), (weight * credit).sum()], [1, 1])
    weight, credit = prepared(keep_negative(), asymmetric_scale())
    near([weight[1, 1], (weight * credit).sum()], [1, -1])


def test_both_halves_are_reinforce():
    """Identity 17 of the catalogue: on outcomes of ±1."""
    on = batch(reward_parts={"score": np.array([[1], [-1], [-1], [1]]) * np.eye(4)[[2, 1, 3, 1]]})
    both = asymmetric_scale(1.0, 1.0, above=0.0)
    near(run(on, outcome_return(), both).sequence, run(on, outcome_return()).sequence)
    kept = [run(on, outcome_return(), half(0.0)).keep for half in (keep_positive, keep_negative)]
    assert np.array_equal(kept[0] ^ kept[1], on.action_mask)
