"""Filters over whole groups: which are kept, and that ties do not depend on the order of rows."""

import dataclasses

import jax
import numpy as np
import pytest

from polopt import Trajectories
from polopt.reward import accuracy_window, group_spread, keep_top_spread
from reward.handmade import near, run

RETURNS = [1, 0, 0, 0, 0, 3, 1, 1, 1, 1, 1, 0]  # four groups of three


def batch(returns=RETURNS, **changes):
    made = Trajectories.build([[1]] * 12, [[9]] * 12, [float(x) for x in returns], group=3)
    return dataclasses.replace(made, **changes)


def kept(on, link):
    """Which groups are kept, by their first row; all rows of a group agree."""
    keep = np.asarray(run(on, link).keep)[:, 1].reshape(4, 3)
    assert (keep == keep[:, :1]).all()
    return keep[:, 0].tolist()


def test_group_spread():
    expected = [np.std(x, ddof=1) for x in np.reshape(RETURNS, (4, 3))]
    near(np.asarray(group_spread(batch()))[::3], expected)


@pytest.mark.parametrize(
    ("share", "groups"),
    [
        (0.25, [False, True, False, False]),
        (0.5, [True, True, False, False]),  # groups 0 and 3 spread alike: the smaller id
        (0.75, [True, True, False, True]),
        (0.1, [False, True, False, False]),  # one at least
        (1.0, [True] * 4),
    ],
)
def test_keep_top_spread(share, groups):
    assert kept(batch(), keep_top_spread(share)) == groups


def test_ties_are_broken_by_id():
    later = np.array([20, 21, 22, 3, 4, 5, 6, 7, 8, 9, 10, 11], np.int32)
    assert kept(batch(id=later), keep_top_spread(0.5)) == [False, True, False, True]


def test_accuracy_window():
    """Rates of 1/3, 0, 1 and 2/3, and bounds that are kept themselves."""
    on = batch([1, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 0])
    assert kept(on, accuracy_window()) == [True, False, False, True]
    assert kept(on, accuracy_window(0.0, 0.5)) == [True, True, False, False]
    assert kept(on, accuracy_window(0.5, 1.0)) == [False, False, True, True]


def test_rows_without_a_score_do_not_lower_the_rate():
    scored = np.ones(12, bool)
    scored[1:3] = False
    returns = [1, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 0]
    parts = jax.tree.map(lambda x: np.where(scored[:, None], x, 0), batch(returns).reward_parts)
    on = batch(scored=scored, reward_parts=parts)
    assert kept(on, accuracy_window(0.9, 1.0)) == [True, False, True, False]
