"""Credit for the best of k, against enumerations of all subsets of k."""

import itertools

import numpy as np
import pytest

from polopt import PoloptError, Trajectories
from polopt.reward import (
    analytic_pass_at_k,
    best_minus_second,
    group_mean_baseline,
    group_std_scale,
    max_at_k,
    outcome_return,
)
from reward.handmade import near, run

REAL = [0.3, -0.1, 0.9, 0.9, 0.2, 0.4]
RIGHT = [1.0, 0.0, 0.0, 1.0, 0.0, 0.0]


def batch(returns):
    """The returns, shuffled with a group of two and unscored rows in between."""
    n = len(returns)
    made = [*returns, 1.0, 0.0, 50.0, 50.0]
    group, scored = [0] * n + [7, 7] + [0, 7], [True] * (n + 2) + [False] * 2
    order = np.random.default_rng(0).permutation(n + 4)
    scores = [made[i] if scored[i] else None for i in order]
    on = Trajectories.build(
        [[1]] * (n + 4), [[9]] * (n + 4), scores, group=[group[i] for i in order]
    )
    return on, np.argsort(order)


def credit(returns, *pieces):
    on, back = batch(returns)
    made = np.asarray(run(on, outcome_return(), *pieces).sequence)[back]
    return made[: len(returns)], made[len(returns) : len(returns) + 2]


def enumerated_gain(R, k):
    """Σ over subsets that hold i of max − max without i, over the number of subsets."""
    gain, subsets = np.zeros(len(R)), list(itertools.combinations(range(len(R)), k))
    for subset in subsets:
        for i in subset:
            gain[i] += max(R[j] for j in subset) - max(R[j] for j in subset if j != i)
    return gain / len(subsets)


def enumerated_credit(R, k):
    """Mean over the subsets that hold i of (max − ρ) / σ, ρ and σ over all subsets."""
    subsets = list(itertools.combinations(range(len(R)), k))
    best = np.array([max(R[j] for j in subset) for subset in subsets])
    normed = (best - best.mean()) / best.std()
    return [
        np.mean([a for a, subset in zip(normed, subsets, strict=True) if i in subset])
        for i in range(len(R))
    ]


@pytest.mark.parametrize("k", [2, 3, 6])
def test_max_at_k(k):
    made, pair = credit(REAL, max_at_k(k))
    near(made, enumerated_gain(REAL, k))
    near(pair, [1, 0] if k == 2 else [0, 0])  # two rows have no subset of three


def test_max_of_all_is_best_minus_second():
    lone = [0.3, -0.1, 0.9, 0.7, 0.2, 0.4]
    near(credit(lone, max_at_k(6))[0], credit(lone, best_minus_second())[0])


def test_max_at_one_has_no_one_to_compare_with():
    with pytest.raises(PoloptError, match="k is 1; give 2 or more"):
        credit(REAL, max_at_k(1))


def test_best_minus_second():
    made, pair = credit([0.3, 0.1, 0.9, 0.2], best_minus_second())
    near(made, [0, 0, 0.6, 0])
    near(pair, [1, 0])
    assert not np.any(credit(REAL, best_minus_second())[0])  # two rows are best
    scaled = credit([0.3, 0.1, 0.9, 0.2], best_minus_second(scaled=True, eps=0.0))[0]
    near(scaled, np.array([0, 0, 0.6, 0]) / np.std([0.3, 0.1, 0.9, 0.2], ddof=1))


@pytest.mark.parametrize("k", [2, 3, 4])
def test_analytic_pass_at_k(k):
    near(credit(RIGHT, analytic_pass_at_k(k, eps=0.0))[0], enumerated_credit(RIGHT, k))


def test_analytic_pass_at_one_is_grpo():
    """Identity 12 of the catalogue."""
    made, pair = credit(RIGHT, analytic_pass_at_k(1))
    grpo = credit(RIGHT, group_mean_baseline(), group_std_scale(ddof=0))
    near(made, grpo[0])
    near(pair, grpo[1])


def test_a_group_that_agrees_or_is_too_small_has_no_credit():
    for returns in ([1.0] * 6, [0.0] * 6):
        assert not np.any(credit(returns, analytic_pass_at_k(2, eps=1e-12))[0])
        assert not np.any(credit(returns, max_at_k(2))[0])
    assert not np.any(credit(RIGHT, analytic_pass_at_k(3))[1])
    sure = credit([1.0, 1.0, 1.0, 0.0], analytic_pass_at_k(2))[0]  # any two hold a right one
    assert not np.any(sure)
