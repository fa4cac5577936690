"""Reward-side formulas of the newer methods against literals worked out by hand."""

import itertools
import math

import numpy as np
import pytest

from . import credit_pieces, pieces
from .batch import random_batch
from .handmade import make, outcomes

HALF = math.log(0.5)  # at p = 1/2 the energy w is the sum of squares alone


def test_informative_scale_counts_scored_rows():
    batch = outcomes([1, 0, 1, 1, 9], [0, 0, 1, 1, 2], scored=[True] * 4 + [False])
    assert credit_pieces.informative_scale(batch, pieces.outcome_return(batch)) == 4 / 2
    even = outcomes([1, 1], [0, 0])
    assert credit_pieces.informative_scale(even, pieces.outcome_return(even)) == 1.0


def test_optimal_token_baseline_by_hand():
    batch = make(
        [".xx", ".x."],
        [[0, 0, 1], [0, 0.4, 0]],
        [0, 0],
        logp_old=np.full((2, 3), HALF),
        sum_prob_sq=[[9, 0.5, 0.5], [9, 0.25, 9]],
    )
    # Place 0: returns 1 and 0.4 with energies 0.5 and 0.25, so b = 0.8; place 1 is the tail.
    for compacted in (True, False):
        got = credit_pieces.optimal_token_baseline(batch, compacted=compacted)
        np.testing.assert_allclose(got, [[0, 0.2, 1], [0, -0.4, 0]], atol=1e-7)
        got = credit_pieces.optimal_token_baseline(batch, compacted=compacted, zero_tail=False)
        np.testing.assert_allclose(got, [[0, 0.2, 0], [0, -0.4, 0]], atol=1e-7)


def test_optimal_token_baseline_sums_the_energy_of_the_path():
    batch = make(
        [".xx", ".xx"],
        [[0, 0, 1], [0, 0, 0]],
        [0, 0],
        logp_old=np.full((2, 3), HALF),
        sum_prob_sq=[[9, 0.5, 0.5], [9, 0.25, 0.75]],
    )
    got = credit_pieces.optimal_token_baseline(batch)
    np.testing.assert_allclose(got, [[0, 1 / 3, 0.5], [0, -2 / 3, -0.5]], atol=1e-7)


def test_optimal_token_baseline_aligns_by_action_or_by_position():
    fields = {"logp_old": np.full((2, 4), HALF), "sum_prob_sq": np.ones((2, 4))}
    batch = make([".x.x", ".xx."], [[0, 0, 0, 1], [0, 0, 0, 0]], [0, 0], **fields)
    compacted = credit_pieces.optimal_token_baseline(batch)
    np.testing.assert_allclose(compacted, [[0, 0.5, 0, 0.5], [0, -0.5, -0.5, 0]], atol=1e-7)
    plain = credit_pieces.optimal_token_baseline(batch, compacted=False, zero_tail=False)
    np.testing.assert_allclose(plain, [[0, 0.5, 0, 0], [0, -0.5, 0, 0]], atol=1e-7)


def test_optimal_token_baseline_squares_the_importance_weight():
    batch = make(
        [".x", ".x"],
        [[0, 1], [0, 0]],
        [0, 0],
        logp_old=np.full((2, 2), HALF),
        logp_sampler=[[9, HALF - math.log(3)], [9, HALF]],  # weights 3, cut to 2, and 1
    )
    got = credit_pieces.optimal_token_baseline(batch, importance_cap=2.0)
    np.testing.assert_allclose(got, [[0, 1 / 5], [0, -4 / 5]], atol=1e-7)  # energies 4 and 1


def test_with_equal_energies_the_optimal_token_baseline_is_the_group_mean():
    fields = {"logp_old": np.full((3, 3), HALF), "sum_prob_sq": np.ones((3, 3))}
    batch = make([".xx"] * 3, [[0, 0, v] for v in (1, 2, 6)], [0, 0, 0], **fields)
    centred = pieces.on_tokens(batch, pieces.group_mean_baseline(batch, np.array([1.0, 2, 6])))
    np.testing.assert_allclose(credit_pieces.optimal_token_baseline(batch), centred, atol=1e-6)


def test_beta_normalisation_by_hand():
    # Means 1/4, 1/2, 3/4: m = 1/2, v = 1/16, alpha = beta = 3/2, density 8/pi sqrt(p (1 - p)).
    values, group = [1, 0, 0, 0, 1, 0, 1, 1, 1, 0], [0] * 4 + [1] * 2 + [2] * 4
    batch = outcomes(values, group)
    got = credit_pieces.beta_normalised(batch, np.array(values, float))
    outer, middle = math.pi / (2 * math.sqrt(3)), math.pi / 4
    expected = [0.75 * outer] + [-0.25 * outer] * 3 + [0.5 * middle, -0.5 * middle]
    expected += [0.25 * outer] * 3 + [-0.75 * outer]
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    shifted = credit_pieces.beta_normalised(batch, 10 * np.array(values) - 4.0, low=-4, high=6)
    np.testing.assert_allclose(shifted, expected, rtol=1e-12)


def test_beta_normalisation_without_spread_between_groups_has_weight_one():
    one, two = outcomes([1, 0], [0, 0]), outcomes([1, 0, 0, 1], [0, 0, 1, 1])
    np.testing.assert_array_equal(
        credit_pieces.beta_normalised(one, [1.0, 0] * np.ones(2)), [0.5, -0.5]
    )
    got = credit_pieces.beta_normalised(two, np.array([1.0, 0, 0, 1]))
    np.testing.assert_array_equal(got, [0.5, -0.5, -0.5, 0.5])
    with pytest.raises(ValueError, match="group means"):
        credit_pieces.beta_normalised(two, np.array([3.0, 0, 0, 1]))


def test_decoupled_normalisation_by_hand():
    batch = outcomes(
        [1, 1.5], [0, 0], parts={"main": [[0, 1], [0, 0]], "style": [[0, 0], [0, 1.5]]}
    )
    up = math.sqrt(0.5)
    np.testing.assert_allclose(
        credit_pieces.decoupled_normalised(batch, {"main": 2.0, "style": 1.0}, eps=0.0),
        [2 * up - up, up - 2 * up],
    )
    np.testing.assert_allclose(credit_pieces.decoupled_normalised(batch, eps=0.0), 0, atol=1e-12)


def test_pass_at_k_estimators_by_hand():
    batch = outcomes([3, 1, 0, 7], [0, 0, 0, 1])
    values = pieces.outcome_return(batch)
    np.testing.assert_allclose(credit_pieces.best_minus_second(batch, values), [2, 0, 0, 0])
    scaled = credit_pieces.best_minus_second(batch, values, scale=True, eps=0.0)
    np.testing.assert_allclose(scaled[0], 2 / math.sqrt(7 / 3))
    np.testing.assert_allclose(credit_pieces.max_at_k(batch, values, 2), [5 / 3, 1 / 3, 0, 0])
    np.testing.assert_allclose(credit_pieces.max_at_k(batch, values, 3), [2, 0, 0, 0])
    with pytest.raises(ValueError, match="k >= 2"):
        credit_pieces.max_at_k(batch, values, 1)
    tied = outcomes([3, 3, 0], [0, 0, 0])
    assert not credit_pieces.best_minus_second(tied, pieces.outcome_return(tied)).any()


def test_analytic_pass_at_k_by_hand():
    # N = 4, c = 1, k = 2: rho = 1/2, sigma = 1/2; a wrong one fails with 2 of the 3 others.
    batch = outcomes([1, 0, 0, 0, 1, 1], [0, 0, 0, 0, 1, 1])
    correct = pieces.outcome_return(batch) > 0.5
    got = credit_pieces.analytic_pass_at_k(batch, correct, 2, eps=0.0)
    np.testing.assert_allclose(got, [1] + [-1 / 3] * 3 + [0, 0])


@pytest.mark.parametrize(("right", "k"), [(1, 3), (2, 3), (4, 2)])
def test_analytic_pass_at_k_is_the_mean_over_subsets(right, k):
    values = [1.0] * right + [0.0] * (6 - right)
    subsets = list(itertools.combinations(range(6), k))
    best = [max(values[j] for j in subset) for subset in subsets]
    rho = np.mean(best)
    batch = outcomes(values, [0] * 6)
    got = credit_pieces.analytic_pass_at_k(batch, np.array(values) > 0.5, k, eps=0.0)
    for i in (0, 5):
        mine = [b for b, subset in zip(best, subsets, strict=True) if i in subset]
        expected = (np.mean(mine) - rho) / math.sqrt(rho * (1 - rho))
        assert got[i] == pytest.approx(expected, abs=1e-12)


def test_max_at_2_of_binary_rewards_has_the_sign_of_pass_at_2():
    batch = outcomes([1, 1, 0, 0], [0] * 4)
    got = credit_pieces.max_at_k(batch, pieces.outcome_return(batch), 2)
    np.testing.assert_allclose(got, [2 / 6, 2 / 6, 0, 0])


def test_smooth_standardisation_by_hand():
    # The prompt's third group, of 1 and 0, after two whose statistics are 1/4 and 1/8.
    batch = outcomes([1, 0, 1, 1], [4, 4, 5, 5], prompt=[1, 1, 0, 0])
    memory = {
        "n": np.array([1.0, 2.0]),
        "mean": np.array([0.5, 0.25]),
        "var": np.array([0.5, 0.125]),
    }
    credit, after = credit_pieces.smooth_standardised(batch, pieces.outcome_return(batch), memory)
    deviation = math.sqrt(19 / 72)  # (2/8 + 1/2 + 2/3 (1/4)^2) / 3, about the mean 1/3
    new, up, down = math.sqrt(0.5), 2 / 3 / deviation, -1 / 3 / deviation
    np.testing.assert_allclose(credit[0], up / 3 + 2 / 3 * new)
    np.testing.assert_allclose(credit[1], -new / 3 + 2 / 3 * down)
    # The other prompt's second group is unanimous: half of (1 - 3/4) / sqrt((0.5 + 1/8) / 2).
    np.testing.assert_allclose(credit[2:], 0.5 * 0.25 / math.sqrt(0.3125))
    np.testing.assert_allclose(after["n"], [2, 3])
    np.testing.assert_allclose(after["mean"], [0.75, 1 / 3])
    np.testing.assert_allclose(after["var"], [0.3125, 19 / 72])
    assert memory["n"].tolist() == [1.0, 2.0]  # what was given is left as it was


def test_smooth_standardisation_of_a_first_meeting_is_grpo():
    batch = random_batch(0)
    values = pieces.outcome_return(batch)
    first, _ = credit_pieces.smooth_standardised(batch, values, credit_pieces.empty_memory(6))
    np.testing.assert_allclose(first, pieces.group_normalised(batch, values, eps=1e-12), atol=1e-9)


def test_length_adaptive_lambda_by_hand():
    got = [credit_pieces.length_adaptive_lambda(n, 0.05) for n in (0, 5, 20, 40, 400)]
    np.testing.assert_allclose(got, [0, 0, 0, 0.5, 0.95], atol=1e-12)


def test_decoupled_gae_by_hand():
    batch = make([".xx", ".xx"], [[0, 0, 1], [0, 0, 1]], [0, 1], value=[[9, 0.25, 0.5]] * 2)
    advantage, returns = credit_pieces.decoupled_gae(
        batch, batch.reward, gamma=1.0, policy_lam=np.array([0.0, 1.0]), critic_lam=1.0
    )
    np.testing.assert_allclose(advantage, [[0, 0.25, 0.5], [0, 0.75, 0.5]])
    np.testing.assert_allclose(returns, [[0, 1, 1]] * 2)
