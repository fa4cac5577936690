"""The reward side against literals worked out by hand, and GAE against rlax."""

import dataclasses

import numpy as np
import pytest
from peers import rlax

from polopt import PoloptError, Stop, Trajectories
from polopt.divergence import k2
from polopt.reward import (
    batch_whiten,
    drop_truncated,
    drop_zero_spread_groups,
    gae,
    group_mean_baseline,
    group_std_scale,
    kl_in_reward,
    leave_one_out_baseline,
    outcome_return,
    overlong_soft_penalty,
    remax_baseline,
    reward_to_go,
)
from polopt.reward.filters import spread
from polopt.reward.gae import generalised_advantage
from polopt.reward.shaping import last_action
from polopt.types import Credit

ROOT = np.sqrt(0.5)


def batch(**changes):
    """Two groups of two; the last row wrote nothing and is paid at its prompt."""
    made = Trajectories.build(
        [[1], [1], [2], [2]], [[5, 6], [7], [8, 9, 10], []], [1.0, 0.0, 2.0, 0.5], group=2
    )
    return dataclasses.replace(made, **changes)


def run(*links, on=None, **start):
    """The credit after each of the links, from the batch's rewards."""
    on = on if on is not None else batch()
    reward = sum(on.reward_parts.values())
    credit = Credit(**{"reward": reward, "keep": on.action_mask, **start})
    for link in links:
        credit = link.fn(credit, on, **link.arguments())
    return credit


def near(got, expected):
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


def test_outcome_return_sums_the_row():
    near(run(outcome_return()).sequence, [1, 0, 2, 0.5])


def test_rows_of_an_episode_share_its_return_and_count_once():
    on = batch(group=np.zeros(4, np.int32), episode=np.array([0, 0, 1, 2], np.int32))
    near(run(outcome_return(), on=on).sequence, [1, 1, 2, 0.5])
    near(
        run(outcome_return(), group_mean_baseline(), on=on).sequence,
        np.array([1, 1, 2, 0.5]) - 3.5 / 3,
    )


def test_reward_to_go_discounts_by_actions():
    on = Trajectories.build(
        [[1]],
        [[2, 3, 4, 5]],
        [[1.0, 0.0, 2.0, 4.0]],
        group=1,
        action_mask=[[True, False, True, True]],
    )
    value = run(reward_to_go(0.5), on=on).value
    near(np.asarray(value)[0, [1, 3, 4]], [3, 4, 4])


def test_group_baselines():
    near(run(outcome_return(), group_mean_baseline()).sequence, [0.5, -0.5, 0.75, -0.75])
    near(run(outcome_return(), leave_one_out_baseline()).sequence, [1, -1, 1.5, -1.5])


def test_leave_one_out_is_scaled_group_mean():
    """Identity 2 of the catalogue, here for a group of four."""
    on = batch(group=np.zeros(4, np.int32))
    near(
        run(outcome_return(), leave_one_out_baseline(), on=on).sequence,
        4 / 3 * run(outcome_return(), group_mean_baseline(), on=on).sequence,
    )


def test_a_row_without_a_score_is_in_no_baseline():
    on = batch(scored=np.array([True, False, True, True]))
    near(run(outcome_return(), group_mean_baseline(), on=on).sequence, [0, 0, 0.75, -0.75])


def test_group_std_scale_by_ddof():
    near(
        run(outcome_return(), group_mean_baseline(), group_std_scale()).sequence,
        [ROOT, -ROOT, ROOT, -ROOT],
    )
    near(
        run(outcome_return(), group_mean_baseline(), group_std_scale(0.0, ddof=0)).sequence,
        [1, -1, 1, -1],
    )
    near(
        run(outcome_return(), group_mean_baseline(), group_std_scale(1.0, ddof=0)).sequence,
        [0.5 / 1.5, -0.5 / 1.5, 0.75 / 1.75, -0.75 / 1.75],
    )


def test_rounding_does_not_turn_equal_rewards_into_credit():
    """The float32 mean of three such is another number: the scale would make it of order one."""
    on = batch(group=np.zeros(4, np.int32), scored=np.array([True, True, True, False]))
    equal = np.full(4, 0.8132702, np.float32)
    assert np.float32(equal[:3].sum() / np.float32(3)) != equal[0]
    credit = run(group_mean_baseline(), group_std_scale(1e-12), on=on, sequence=equal).sequence
    assert not np.any(credit)


def test_batch_whiten_counts_tokens():
    """Tokens of the rows: two of 1, one of 4, three of 2.5; mean 2.25, and ddof 1."""
    sequence = np.array([1, 4, 2.5, 99], np.float32)
    value = run(batch_whiten(0.0), sequence=sequence).value
    tokens = np.array([1, 1, 4, 2.5, 2.5, 2.5])
    expected = (tokens - tokens.mean()) / tokens.std(ddof=1)
    near(np.asarray(value)[batch().action_mask], expected)
    biased = run(batch_whiten(0.0, ddof=0), sequence=sequence).value
    near(np.asarray(biased)[batch().action_mask], expected * np.sqrt(6 / 5))


def test_batch_whiten_leaves_out_rows_without_a_score():
    on = batch(scored=np.array([True, True, False, True]))
    value = run(batch_whiten(0.0), on=on, sequence=np.array([1, 4, 2.5, 99], np.float32)).value
    near(value[0][1:3], np.array([-1, -1]) / np.sqrt(3))
    near(value[1][1], 2 / np.sqrt(3))


def test_remax_compares_with_the_greedy_completion():
    on = batch(columns={"greedy_return": np.array([1, 1, 0.5, 0.5], np.float32)})
    near(run(outcome_return(), remax_baseline(), on=on).sequence, [0, -1, 1.5, 0])
    near(run(reward_to_go(), remax_baseline(), on=on).value[2][1:], [1.5, 1.5, 1.5])


def test_kl_in_reward_is_paid_per_action():
    old, ref = np.full((4, 4), -1.0, np.float32), np.full((4, 4), -1.5, np.float32)
    on = batch(columns={"logp_old": old, "logp_ref": ref})
    near(run(kl_in_reward(0.1), on=on).reward[0], [0, -0.05, 1 - 0.05, 0])
    near(run(kl_in_reward(0.1, k2), on=on).reward[0], [0, -0.0125, 1 - 0.0125, 0])


@pytest.mark.parametrize(("length", "penalty"), [(2, 0), (3, -0.5), (4, -1), (5, -1)])
def test_overlong_soft_penalty(length, penalty):
    on = Trajectories.build([[1]], [[2] * length], [0.0], group=1, width=6)
    reward = np.asarray(run(overlong_soft_penalty(4, 2), on=on).reward)
    near(reward.sum(), penalty)
    near(reward[0, length], penalty)


def test_last_action_skips_observations():
    mask = np.array([[0, 1, 0, 1, 0], [0, 0, 0, 0, 0]], bool)
    assert last_action(mask).tolist() == [[False] * 3 + [True, False], [False] * 5]


def test_filters():
    stop = np.array([Stop.EOS, Stop.LENGTH, Stop.TURN_LIMIT, Stop.TOOL_ERROR])
    kept = run(drop_truncated(), on=batch(stop=stop)).keep
    assert kept.any(axis=1).tolist() == [True, False, False, False]
    on = batch(
        reward_parts={
            "outcome": np.eye(4, 4)[[0, 0, 1, 2]] * [[1], [1], [1], [2]],
            "format": np.ones((4, 4)),
        }
    )
    assert np.asarray(spread(on)).tolist() == [False, False, True, True]
    assert not np.any(spread(on, "format"))
    with pytest.raises(PoloptError, match="no reward component 'formt'; did you mean 'format'"):
        spread(on, "formt")
    kept = run(drop_zero_spread_groups(), on=on).keep  # the last row has no token to keep
    assert kept.any(axis=1).tolist() == [False, False, True, False]


REWARD, VALUE = np.array([0, 0, 1.0]), np.array([0.5, 0.25, 0.75])


def advantage(mask, last, gamma, lam, reward=REWARD, value=VALUE):
    """GAE with the numbers written on the masked-in tokens and garbage elsewhere."""
    mask = np.array([mask], bool)
    on = [np.full(mask.shape, 77.0, np.float32) for _ in range(2)]
    for array, numbers in zip(on, (reward, value), strict=True):
        array[mask] = numbers
    out = generalised_advantage(*on, mask, np.array([last], np.float32), gamma, lam)
    return np.asarray(out)[mask]


def test_gae_by_hand():
    near(advantage([1, 1, 1], 0, 1.0, 0.5), [0.0625, 0.625, 0.25])
    near(advantage([1, 1, 1], 0.5, 1.0, 0.0), [-0.25, 0.5, 0.75])


def test_gae_steps_over_observations():
    """Identity 15 of the catalogue: inserted observations change nothing."""
    near(advantage([0, 1, 0, 0, 1, 1, 0], 0.2, 0.9, 0.5), advantage([1, 1, 1], 0.2, 0.9, 0.5))


def test_gae_without_decay_is_the_return_less_the_value():
    near(advantage([1, 1, 1], 0, 1.0, 1.0), 1 - VALUE)


def test_gae_is_that_of_rlax():
    rng = np.random.default_rng(0)
    reward, value, last = rng.normal(size=6), rng.normal(size=6), rng.normal()
    peer = rlax.truncated_generalized_advantage_estimation(
        reward.astype(np.float32),
        np.full(6, 0.9, np.float32),
        0.8,
        np.append(value, last).astype(np.float32),
    )
    near(advantage([1, 0, 1, 1, 1, 0, 1, 1], last, 0.9, 0.8, reward, value), peer)


def test_gae_leaves_targets_and_reads_the_named_bootstrap():
    value = np.array([[9, 0.5, 0.25, 9]], np.float32)
    on = Trajectories.build(
        [[1]],
        [[2, 3]],
        [1.0],
        group=1,
        width=4,
        columns={"value": value, "last": np.array([2.0], np.float32)},
    )
    done = run(gae(1.0, 1.0), on=on)
    near(done.targets["returns"], [[0, 1, 1, 0]])
    near(run(gae(1.0, 1.0, bootstrap="last"), on=on).targets["returns"], [[0, 3, 3, 0]])
    assert gae(bootstrap="last").needs == ("value", "last")
