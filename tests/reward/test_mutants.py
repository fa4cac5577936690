"""What the mutation check found untested on the reward side (`experiments/mutation`)."""

import dataclasses

import jax
import numpy as np
import pytest

from polopt import Trajectories
from polopt.numerics import centre, safe_exp, token_info, turn_total
from polopt.reward import (
    batch_whiten_sequences,
    keep_positive,
    keep_top_spread,
    outcome_return,
    smooth_standardise,
    teacher_credit,
    teacher_reward,
)
from polopt.reward.returns import scored_rows
from polopt.reward.turns import action_turn
from polopt.types import Credit
from reward.handmade import near, run


def rows(returns, group, **changes):
    """One-token rows that earn a return each."""
    n = len(returns)
    made = Trajectories.build([[1]] * n, [[9]] * n, [float(x) for x in returns], group=group)
    return dataclasses.replace(made, **changes)


def test_a_turn_has_a_total_and_what_is_in_none_has_zero():
    turn = np.array([[-1, 0, 0, -1, 1]])
    near(turn_total(np.array([[5.0, 1.0, 2.0, 7.0, 4.0]]), turn), [[0, 3, 3, 0, 4]])


def test_a_ratio_is_bounded_on_both_sides():
    near(safe_exp(np.array([-30.0, 0.5, 30.0]), 10.0), np.exp([-10, 0.5, 10]))


def test_a_member_without_weight_is_not_centred():
    """The mean of 1 and 3 is 2; 9 is not counted, and has no distance to it."""
    x, weight = np.array([1.0, 3.0, 9.0]), np.array([1.0, 1.0, 0.0])
    near(centre(x, np.zeros(3, int), weight), [-1, 1, 0])


def test_a_measurement_has_no_gradient():
    mask = np.array([[True, False]])
    slope = jax.grad(lambda x: token_info(x, mask).sum)(np.ones((1, 2), np.float32))
    assert not slope.any()


def test_a_token_that_is_not_trained_on_is_in_no_turn():
    made = Trajectories.build([[1]], [[5, 6, 7]], [1.0], group=1)
    trained = np.array([[False, True, False, True]])
    on = dataclasses.replace(made, action_mask=trained, turn=np.array([[-1, 0, 0, 1]]))
    assert action_turn(on).tolist() == [[-1, 0, -1, 1]]


@pytest.mark.parametrize(
    ("returns", "share", "kept"),
    [
        ([0, 1, 0, 1.0005], 0.5, [False, True]),  # spreads apart by more than rounding
        ([0, 1, 0, 1 + 2e-6], 0.5, [True, False]),  # and by no more: the smaller id
        ([0, 1, 0, 2], 0.99998, [False, True]),  # a share of less than two groups is one
    ],
)
def test_how_near_is_equal_among_spreads(returns, share, kept):
    keep = np.asarray(run(rows(returns, group=2), keep_top_spread(share)).keep)
    assert keep[::2, 1].tolist() == kept


def test_a_row_without_a_score_is_not_right_however_low_the_bar():
    on = rows([1, 0, -1], group=3, scored=np.array([True, False, True]))
    keep = np.asarray(run(on, outcome_return(), keep_positive(above=-0.5)).keep)
    assert keep[:, 1].tolist() == [True, False, False]


def test_whitening_has_its_epsilon_inside_the_root():
    """Returns 0 and 2 vary by 2: ∓1/sqrt(2 + 0.5)."""
    made = run(rows([0, 2], group=2), outcome_return(), batch_whiten_sequences(eps=0.5))
    near(made.sequence, [-1 / np.sqrt(2.5), 1 / np.sqrt(2.5)])


def test_padding_that_claims_a_score_is_not_counted():
    on = rows([0, 2, 0], group=3, length=np.array([2, 2, 0], np.int32))
    assert scored_rows(on).tolist() == [True, True, False]


def test_a_small_spread_is_standardised_and_only_rounding_is_not():
    """Spreads of 3.5e-5 and of 3.5e-7 on a first visit, where the group is all there is."""
    tracker = smooth_standardise()
    on = rows([0] * 4, group=2, prompt=np.array([0, 0, 1, 1], np.int32))

    @jax.jit
    def credit_of(returns):
        start = Credit(reward=0.0, keep=on.action_mask, sequence=returns)
        memory = tracker.hooks.init(2, **tracker.arguments())
        return tracker.fn(start, on, memory=memory, **tracker.arguments())[0].sequence

    root = np.sqrt(0.5)
    near(credit_of(np.array([0, 5e-5, 0, 5e-7], np.float32)), [-root, root, 0, 0])


def test_a_teachers_gap_is_bounded_on_both_sides_and_zero_outside_the_mask():
    """Gaps of 3, −3 and 0.5, beside a prompt token with numbers of its own."""
    gap = np.stack([np.full(3, 7.0), [3.0, -3.0, 0.5]], axis=1)
    sampler = np.full((3, 2), -2.0)
    columns = {"logp_teacher": sampler + gap, "kl": np.ones((3, 2))}
    on = rows([0, 0, 0], group=3, logp_sampler=sampler, log_keep=0 * sampler, columns=columns)
    near(run(on, teacher_reward(2.0, bound=1.0)).reward, [[0, 2], [0, -2], [0, 1]])
    centred = teacher_credit(2.0, bound=1.0, baseline="kl")
    near(run(on, centred).value, [[0, 4], [0, 0], [0, 3]])
