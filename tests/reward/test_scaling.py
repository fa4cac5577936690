"""Scales against literals, SciPy's Beta density, and their special cases."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from polopt import Trajectories
from polopt.reward import (
    batch_std_scale,
    batch_whiten,
    batch_whiten_sequences,
    beta_normalise,
    effective_sample_rescale,
    group_mean_baseline,
    group_std_scale,
    outcome_return,
)
from reward.handmade import near, run


def batch(returns, group=2, **changes):
    completions = [[9] * (1 + i % 3) for i in range(len(returns))]
    made = Trajectories.build([[1]] * len(returns), completions, returns, group=group, width=5)
    return dataclasses.replace(made, **changes)


def test_batch_std_scale_divides_by_the_spread_of_the_returns():
    """Not by that of the centred credit: 0, 1, 2, 5 have a variance of 14/3."""
    credit = run(batch([0.0, 1.0, 2.0, 5.0]), outcome_return(), group_mean_baseline(),
                 batch_std_scale(0.0)).sequence  # fmt: skip
    near(credit, np.array([-0.5, 0.5, -1.5, 1.5]) / np.sqrt(14 / 3))


def test_whitened_rows_count_once_whatever_their_length():
    returns = [0.0, 1.0, 2.0, 5.0, 9.0, 9.0]
    on = batch(returns, scored=np.array([1, 1, 1, 1, 0, 0], bool))
    expected = (np.array([0, 1, 2, 5]) - 2) / np.sqrt(14 / 3)
    near(run(on, outcome_return(), batch_whiten_sequences(0.0)).sequence[:4], expected)
    tokens = run(on, outcome_return(), batch_whiten(0.0)).value
    assert not np.allclose(tokens[:4, 1], expected, atol=0.01)


def bnpo(returns, size):
    """2506.02864 by moments, with SciPy's density."""
    R = np.reshape(returns, (-1, size))
    p = R.mean(axis=1)
    mean, variance = p.mean(), p.var(ddof=1)
    s = mean * (1 - mean) / variance - 1
    density = stats.beta.pdf(p, max(1, 1 + s * mean / 3), max(1, 1 + s * (1 - mean) / 3))
    return ((R - p[:, None]) / density[:, None]).reshape(-1)


@pytest.mark.parametrize(
    "returns",
    [
        [1, 0, 0, 0, 1, 1, 1, 0, 1, 1, 0, 0],  # of about the moments of a Beta with alpha > 1
        [1, 0, 0, 0, 1, 1, 1, 0, 1, 0, 0, 0],
    ],
)
def test_beta_normalise(returns):
    near(run(batch(returns, 4), outcome_return(), beta_normalise()).sequence, bnpo(returns, 4))


def test_beta_normalise_maps_the_range_of_the_reward():
    returns = np.array([1, 0, 0, 0, 1, 1, 1, 0, 1, 1, 0, 0])
    scaled = run(batch(3 * returns - 1, 4), outcome_return(), beta_normalise(-1, 2)).sequence
    near(scaled, bnpo(returns, 4))


@pytest.mark.parametrize(
    "returns",
    [
        [1, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0],  # no spread of rates
        [1, 1, 1, 1, 0, 0, 0, 0, 1, 0, 0, 0],  # more than any Beta with alpha, beta > 1 has
    ],
)
def test_beta_normalise_with_nothing_to_fit_is_the_group_mean(returns):
    on = batch(returns, 4)
    expected = run(on, outcome_return(), group_mean_baseline()).sequence
    near(run(on, outcome_return(), beta_normalise()).sequence, expected)


def test_beta_of_three_halves_is_grpo():
    """Its density is proportional to sqrt(p(1 − p)), the deviation of a Bernoulli."""
    returns = np.array([1, 0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 0], float)
    p = returns.reshape(3, 4).mean(axis=1)
    inverse = ((returns.reshape(3, 4) - p[:, None]) / stats.beta.pdf(p, 1.5, 1.5)[:, None]).ravel()
    grpo = run(batch(returns, 4), outcome_return(), group_mean_baseline(),
               group_std_scale(0.0, ddof=0)).sequence  # fmt: skip
    near(inverse, np.pi / 8 * np.asarray(grpo))


def test_informative_groups_stand_for_the_rest():
    """Two of six rows have a gradient, one is not scored: 5 / 2."""
    on = batch([1.0, 0.0, 1.0, 1.0, 0.0, 7.0], scored=np.array([1, 1, 1, 1, 1, 0], bool))
    pieces = (outcome_return(), group_mean_baseline(), effective_sample_rescale())
    near(run(on, *pieces).sequence, [1.25, -1.25, 0, 0, 0, 0])
    assert not np.any(run(batch([1.0] * 4), *pieces).sequence)
