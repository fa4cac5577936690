"""Batches, weights and pieces against literals worked out by hand."""

import math

import numpy as np
import pytest

from . import aggregate, pieces
from .batch import random_batch
from .handmade import make, outcomes

SEEDS = [0, 1, 2]

# ------------------------------------------------------------------ the generator


@pytest.mark.parametrize("seed", SEEDS)
def test_random_batch_has_every_awkward_case(seed):
    batch = random_batch(seed)
    padding = batch.group < 0
    sizes = [int((batch.group == g).sum()) for g in set(batch.group[~padding])]
    assert padding.sum() == 1
    assert not batch.mask[padding].any()
    assert (batch.length[~padding] == 0).sum() == 1
    assert min(sizes) == 1 < max(sizes)
    assert (~batch.scored & ~padding).sum() == 2
    assert batch.truncated.any()
    assert any(np.diff(batch.actions(n)).max(initial=1) > 1 for n in range(len(batch.group)))
    assert (batch.bootstrap_value[~batch.truncated] == 0).all()
    assert (batch.turn >= 0).tolist() == batch.mask.tolist()
    assert (batch.group < len(batch.group)).all()
    assert len(set(batch.greedy_return[batch.group == batch.group[~padding][0]])) == 1


def test_random_batch_refuses_sizes_that_cannot_hold_a_row():
    with pytest.raises(ValueError, match="width >= 5"):
        random_batch(0, width=4)


# ------------------------------------------------------------------ aggregation

KEEP = np.array([[1, 1, 1, 1], [0, 1, 0, 1], [0, 0, 0, 0]], bool)


def test_weights_by_hand():
    turn = np.array([[0, 0, 0, 1], [-1, 0, -1, 1], [-1] * 4])
    group = np.array([5, 5, 2])
    expected = {
        "token_mean": (aggregate.token_mean(KEEP), [1 / 6] * 4, 1 / 6),
        "sequence_mean": (aggregate.sequence_mean(KEEP), [1 / 8] * 4, 1 / 4),
        "sequence_sum_mean": (aggregate.sequence_sum_mean(KEEP), [1 / 2] * 4, 1 / 2),
        "sequence_mean_sum": (aggregate.sequence_mean_sum(KEEP), [1 / 4] * 4, 1 / 2),
        "constant_length": (aggregate.constant_length(KEEP, 10), [1 / 20] * 4, 1 / 20),
        "turn_mean": (aggregate.turn_mean(KEEP, turn), [1 / 12] * 3 + [1 / 4], 1 / 4),
        "group_mean": (aggregate.group_mean(KEEP, group), [1 / 8] * 4, 1 / 4),
        "ddof": (aggregate.group_mean(KEEP, group, ddof=1), [1 / 4] * 4, 1 / 2),
        "within": (aggregate.group_mean(KEEP, group, within="sum"), [1 / 2] * 4, 1 / 2),
        "token_sum": (aggregate.token_sum(KEEP), [1.0] * 4, 1.0),
    }
    for name, (got, first, second) in expected.items():
        np.testing.assert_allclose(got[0], first, rtol=1e-15, err_msg=name)
        np.testing.assert_allclose(got[1], [0, second, 0, second], rtol=1e-15, err_msg=name)
        np.testing.assert_array_equal(got[2], 0, err_msg=name)


def test_a_group_no_larger_than_ddof_weighs_nothing_and_is_counted():
    got = aggregate.group_mean(KEEP[[0, 1, 1]], np.array([0, 1, 1]), ddof=1)
    np.testing.assert_array_equal(got[0], 0)
    np.testing.assert_allclose(got[1:].sum(), 1 / 2 * 2)


def test_denominators_are_those_of_each_step():
    step_of = np.array([3, 0, 0])
    np.testing.assert_allclose(aggregate.token_mean(KEEP, step_of=step_of).sum(axis=1), [1, 1, 0])
    np.testing.assert_allclose(
        aggregate.sequence_sum_mean(KEEP, step_of=step_of).sum(axis=1), [4, 2, 0]
    )


def test_nothing_kept_weighs_nothing():
    for weigh in (aggregate.token_mean, aggregate.sequence_mean, aggregate.token_sum):
        assert not weigh(np.zeros((2, 3), bool)).any()


def test_on_equal_lengths_all_aggregations_agree_up_to_a_scalar():
    keep = np.array([[0, 1, 1, 0], [1, 0, 0, 1], [0, 0, 1, 1]], bool)
    turn, group = np.where(keep, 0, -1), np.array([0, 0, 0])
    for weight in (
        aggregate.token_mean(keep),
        aggregate.sequence_mean(keep),
        aggregate.sequence_sum_mean(keep),
        aggregate.sequence_mean_sum(keep),
        aggregate.constant_length(keep, 7),
        aggregate.turn_mean(keep, turn),
        aggregate.group_mean(keep, group, ddof=1),
    ):
        np.testing.assert_allclose(weight, weight.max() * keep, rtol=1e-15)


# ------------------------------------------------------------------ reward side


def test_returns_skip_observations():
    batch = make([".x..x", "....."], [[9, 1, 9, 9, 2], [3, 0, 0, 0, 0]], [0, 0])
    np.testing.assert_array_equal(pieces.outcome_return(batch), [3, 3])
    np.testing.assert_array_equal(pieces.reward_to_go(batch, 0.5)[0], [0, 2, 0, 0, 2])


def test_kl_in_reward_by_hand():
    batch = make([".xx"], [[0, 0, 1]], [0], logp_old=[[9, -1, -2]], logp_ref=[[0, -2, -1.5]])
    for estimator, first, second in (
        (pieces.k1, 1.0, -0.5),
        (pieces.k2, 0.5, 0.125),
        (pieces.k3, math.exp(-1), math.exp(0.5) - 1.5),
        (pieces.k_abs, 1.0, 0.5),
    ):
        got = pieces.kl_in_reward(batch, 0.1, estimator)
        np.testing.assert_allclose(got[0], [0, -0.1 * first, 1 - 0.1 * second], rtol=1e-12)


def test_group_statistics_by_hand():
    # Group 0: 1, 2, 6; an unscored 100 is not seen. Group 1: one scored member. Group 2: equal.
    batch = outcomes(
        [1, 2, 6, 100, 4, 50, 0.1, 0.1],
        [0, 0, 0, 0, 1, 1, 2, 2],
        scored=[True, True, True, False, True, False, True, True],
    )
    outcome = pieces.outcome_return(batch)
    np.testing.assert_allclose(
        pieces.group_mean_baseline(batch, outcome), [-2, -1, 3, 0, 0, 0, 0, 0]
    )
    np.testing.assert_allclose(
        pieces.leave_one_out_baseline(batch, outcome), [-3, -1.5, 4.5, 0, 0, 0, 0, 0]
    )
    np.testing.assert_allclose(pieces.group_std(batch, outcome)[:3], math.sqrt(7))
    np.testing.assert_allclose(pieces.group_std(batch, outcome, ddof=0)[:3], math.sqrt(14 / 3))
    np.testing.assert_allclose(
        pieces.group_normalised(batch, outcome, eps=0.5),
        [x / (math.sqrt(7) + 0.5) for x in (-2, -1, 3)] + [0] * 5,
    )
    np.testing.assert_allclose(
        pieces.batch_std(batch, outcome), np.std([1, 2, 6, 4, 0.1, 0.1], ddof=1)
    )


def test_length_weighted_baseline_by_hand():
    batch = make([".x..", ".xxx"], [[0, 1, 0, 0], [0, 0, 0, 5]], [0, 0])
    got = pieces.length_weighted_baseline(batch, pieces.outcome_return(batch))
    np.testing.assert_allclose(got, [1 - 4, 5 - 4])


def test_whitening_by_hand():
    batch = make([".x.x", ".x..", ".x.."], [[0] * 4] * 3, [0, 0, 0], scored=[True, True, False])
    credit = np.array([[7, 1, 7, 1], [7, 4, 7, 7], [7, 99, 7, 7]], float)
    got = pieces.whiten_tokens(batch, credit, eps=1.0)  # values 1, 1, 4: mean 2, variance 3
    np.testing.assert_allclose(got, [[0, -0.5, 0, -0.5], [0, 1, 0, 0], [0, 0, 0, 0]])
    rows = pieces.whiten_sequences(batch, np.array([1.0, 4.0, 99.0]), eps=0.0)
    np.testing.assert_allclose(rows, [-math.sqrt(0.5), math.sqrt(0.5), 0])


def test_gae_by_hand_and_over_an_observation():
    fields = {"bootstrap_value": [4.0], "truncated": [True]}
    batch = make([".xx"], [[0, 1, 2]], [0], value=[[9, 3, 5]], **fields)
    advantage, returns = pieces.gae(batch, batch.reward, gamma=0.5, lam=0.5)
    last = 2 + 0.5 * 4 - 5
    np.testing.assert_allclose(advantage, [[0, 1 + 0.5 * 5 - 3 + 0.25 * last, last]])
    np.testing.assert_allclose(returns, advantage + batch.value * batch.mask)
    holed = make([".x..x."], [[0, 1, 8, 8, 2, 8]], [0], value=[[9, 3, 9, 9, 5, 9]], **fields)
    bridged, _ = pieces.gae(holed, holed.reward, gamma=0.5, lam=0.5)
    np.testing.assert_array_equal(bridged[0, [1, 4]], advantage[0, 1:])


@pytest.mark.parametrize("seed", SEEDS)
def test_gae_ends_are_monte_carlo_and_td_error(seed):
    batch = random_batch(seed)
    alive = batch.mask & batch.scored[:, None]
    monte_carlo, _ = pieces.gae(batch, batch.reward, gamma=1.0, lam=1.0)
    to_go = pieces.reward_to_go(batch, 1.0) + batch.bootstrap_value[:, None]
    np.testing.assert_allclose(monte_carlo[alive], (to_go - batch.value)[alive], atol=1e-12)
    td, returns = pieces.gae(batch, batch.reward, gamma=0.9, lam=0.0)
    for n in np.flatnonzero(batch.scored):
        actions = batch.actions(n)
        nexts = [batch.value[n, t] for t in actions[1:]] + [batch.bootstrap_value[n]]
        for t, following in zip(actions, nexts, strict=False):  # a row may have no action
            assert returns[n, t] == pytest.approx(batch.reward[n, t] + 0.9 * following)
            assert td[n, t] == pytest.approx(returns[n, t] - batch.value[n, t])


def test_overlong_penalty_has_three_cases():
    for length, expected in ((80, 0), (81, -0.05), (90, -0.5), (100, -1), (101, -1), (500, -1)):
        assert pieces.overlong_penalty(length, 100, 20) == pytest.approx(expected)


def test_filters():
    batch = outcomes([1, 0, 1, 1, 0.5], [0, 0, 1, 1, 2], truncated=[True] + [False] * 4)
    kept = pieces.keep_spread_groups(batch, batch.mask, pieces.outcome_return(batch))
    assert kept.any(axis=1).tolist() == [True, True, False, False, False]
    kept = pieces.keep_terminated(batch, batch.mask)
    assert kept.any(axis=1).tolist() == [False, True, True, True, True]


# ------------------------------------------------------------------ trajectory side


def test_ratios_by_hand():
    batch = make([".x.x"], [[0] * 4], [0], logp_old=[[9.0, -1.0, 9.0, -2.0]])
    logp = np.array([[0.0, -0.5, 0.0, -1.7]])
    assert pieces.token_ratio(-0.5, -1.0) == pytest.approx(math.exp(0.5))
    assert pieces.sequence_ratio_full(batch, 0, logp, batch.logp_old) == pytest.approx(
        math.exp(0.8)
    )
    geometric = pieces.sequence_ratio_geometric(batch, 0, logp, batch.logp_old)
    assert geometric == pytest.approx(math.exp(0.4))
    assert pieces.gspo_token_ratio(batch, 0, 1, logp, logp) == geometric


@pytest.mark.parametrize(
    ("ratio", "credit", "clip", "dual"),
    [(1.5, 2, 2.4, 2.4), (0.5, 2, 1, 1), (0.5, -2, -1.6, -1.6), (1.5, -2, -3, -3), (4, -2, -8, -6)],
)
def test_clips_by_hand(ratio, credit, clip, dual):
    assert pieces.clipped(ratio, credit, 0.2, 0.2) == pytest.approx(clip)
    assert pieces.dual_clipped(ratio, credit, 0.2, 0.2, 3.0) == pytest.approx(dual)


def test_detached_weights_by_hand():
    assert pieces.ratio_capped(5.0, 4.0) == 4.0
    assert pieces.ratio_capped(3.0, 4.0) == 3.0
    assert [pieces.cispo_weight(r, 0.2, 0.3) for r in (0.5, 1.1, 2.0)] == [0.8, 1.1, 1.3]
    assert pieces.cispo_weight(0.1, math.inf, 4.0) == 0.1
    assert pieces.truncated_is(0.0, 2.0) == 1.0  # sampler and trainer agree
    assert pieces.truncated_is(3.0, 2.0) == 2.0
    assert pieces.masked_is(math.log(1.5), 0.5, 5.0) == pytest.approx(1.5)
    assert pieces.masked_is(math.log(0.4), 0.5, 5.0) == 0.0
    assert pieces.masked_is(math.log(6.0), 0.5, 5.0) == 0.0


def test_value_error_takes_the_worse_of_raw_and_clipped():
    assert pieces.value_error(3.0, 1.0, 0.0) == 2.0
    assert pieces.value_error(3.0, 1.0, 0.0, clip=0.5) == 2.0
    assert pieces.value_error(1.0, 1.0, 0.0, clip=0.5) == 0.125


def test_entropy_of_known_distributions():
    assert pieces.entropy([2.0, 2.0, 2.0, 2.0]) == pytest.approx(math.log(4))
    p = 0.25
    two = pieces.entropy([math.log(p), math.log(1 - p)])
    assert two == pytest.approx(-p * math.log(p) - (1 - p) * math.log(1 - p))


def test_ratio_weighted_k3_has_the_gradient_of_k2_on_policy():
    def slope(f, x, h=1e-6):
        return (f(x + h) - f(x - h)) / (2 * h)

    for d in (-1.3, -0.2, 0.4, 2.0):
        weighted = slope(lambda x, d=d: math.exp(x - d) * pieces.k3(x), d)
        assert weighted == pytest.approx(slope(pieces.k2, d), rel=1e-6)
        assert slope(pieces.k3, d) == pytest.approx(1 - math.exp(-d), rel=1e-6)
        assert slope(pieces.k1, d) == pytest.approx(1.0)
