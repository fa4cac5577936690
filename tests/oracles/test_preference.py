"""Preference losses against literals worked out by hand."""

import math

import numpy as np
import pytest

from . import methods, preference
from .handmade import make, outcomes

LOGP = np.array([[9, 0.5, 1.5], [9, -1, 9], [9, 3, 9.0]])


def three_rows(**fields):
    reward = [[0, 0, 1], [0, 0, 0], [0, 0.5, 0]]
    return make([".xx", ".x.", ".x."], reward, [0, 0, 0], **fields)


def test_pairs_are_best_against_worst():
    assert preference.pairs(three_rows()) == [(0, 1)]
    assert preference.pairs(three_rows(scored=[False, True, True])) == [(2, 1)]
    ties = outcomes([0, 1, 1, 0], [0] * 4)
    assert preference.pairs(ties) == [(1, 0)]
    assert preference.pairs(outcomes([1, 1, 0], [0, 0, 1])) == []
    empty = make(["...", ".x.", ".x."], [[9, 0, 0], [0, 1, 0], [0, 0, 0]], [0, 0, 0])
    assert preference.pairs(empty) == [(1, 2)]


def test_dpo_by_hand():
    batch = three_rows(logp_ref=[[0, 0.5, 0.5], [0, 0, 0], [0, 0, 0]])
    oracle = preference.dpo(batch, beta=0.5)  # h = 1 + 1
    assert oracle.loss(LOGP) == pytest.approx(math.log(1 + math.exp(-1)))
    slope = methods.gradient(oracle.loss, LOGP)
    pull = 0.5 / (1 + math.e)
    np.testing.assert_allclose(slope, [[0, -pull, -pull], [0, pull, 0], [0, 0, 0]], atol=1e-8)
    assert preference.dpo(batch).loss(LOGP) == pytest.approx(math.log(1 + math.exp(-0.2)))
    assert oracle.credit[:, 1].tolist() == [1, -1, 0]


def test_ipo_by_hand():
    batch = three_rows()
    assert preference.ipo(batch).loss(LOGP) == pytest.approx((3 - 5) ** 2)
    assert preference.ipo(batch, tau=0.25).loss(LOGP) == pytest.approx(1)


def test_pairs_are_averaged_per_step():
    batch = outcomes([1, 0, 1, 0, 1, 1], [0, 0, 1, 1, 2, 2])
    logp = np.array([[9, x] for x in (1.0, 0, 0, 2, 5, 5)])
    one, two = (1 - 5) ** 2, (-2 - 5) ** 2
    assert preference.ipo(batch).loss(logp) == pytest.approx((one + two) / 2)
    steps = np.array([0, 0, 1, 1, 1, 1])
    assert preference.ipo(batch, step_of=steps).loss(logp) == pytest.approx(one + two)


def test_online_dpo_is_either():
    batch = three_rows()
    assert preference.online_dpo(batch).loss(LOGP) == preference.dpo(batch).loss(LOGP)
    squared = preference.online_dpo(batch, beta=0.25, squared=True)
    assert squared.loss(LOGP) == preference.ipo(batch, tau=0.25).loss(LOGP)


def test_without_a_pair_there_is_no_loss():
    assert preference.dpo(outcomes([1, 1], [0, 0])).loss(np.ones((2, 2))) == 0
