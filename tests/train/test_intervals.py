import itertools

import pytest
from scipy.stats import binomtest

from polopt.train.intervals import pass_at_k, wilson, wilson_difference


@pytest.mark.parametrize(("successes", "trials"), [(0, 7), (3, 7), (7, 7), (69, 256), (1, 10_000)])
def test_wilson_equals_scipy(successes, trials):
    ci = binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    assert wilson(successes, trials) == pytest.approx((ci.low, ci.high), abs=1e-12)


def test_without_trials_nothing_is_known():
    assert wilson(0, 0) == (0.0, 1.0)


def test_impossible_counts_are_refused():
    with pytest.raises(ValueError, match="successes"):
        wilson(8, 7)


@pytest.mark.parametrize(
    ("first", "second", "interval"),
    # Newcombe (1998), table II, method 10, contrasts (a), (c) and (e); he gives four decimals.
    [
        ((56, 70), (48, 80), (0.0524, 0.3339)),
        ((6, 7), (2, 7), (0.0582, 0.8062)),
        ((0, 10), (0, 20), (-0.1611, 0.2775)),
    ],
)
def test_difference_equals_the_published_examples(first, second, interval):
    (a, m), (b, n) = first, second
    assert wilson_difference(b / n, n, a / m, m) == pytest.approx(interval, abs=6e-5)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_pass_at_k_equals_trying_every_subset(k):
    answers = [[1, 0, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]]
    solved = [any(s) for row in answers for s in itertools.combinations(row, k)]
    expected = sum(solved) / len(solved)
    assert pass_at_k([sum(row) for row in answers], 5, k) == pytest.approx(expected)


def test_pass_at_more_than_was_sampled_is_refused():
    with pytest.raises(ValueError, match="k must lie"):
        pass_at_k([1], samples=2, k=3)
