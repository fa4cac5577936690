"""Regressions against literals worked out by hand, and identities between them."""

import math
from dataclasses import replace

import numpy as np
import pytest

from . import methods, pieces, regression
from .batch import random_batch, random_logp
from .handmade import make, outcomes

# Outcomes 1, 0, 0.5 (unscored) and log-ratios 2 (over two tokens), -1, 9.
ROWS = [".xx", ".x.", ".x."]
LOGP = np.array([[7, 0.5, 1.5], [7, -1, 7], [7, 9, 7]])


def three_rows(group=(0, 0, 0), **fields):
    scored = [True, True, False]
    reward = [[0, 0, 1], [0, 0, 0], [0, 0.5, 0]]
    return make(ROWS, reward, group, **{"scored": scored, **fields})


def test_dro_by_hand():
    batch = three_rows(value=[[0, 0.25, 9]] * 3)
    # (1 - 0.25 - 0.5 * 2)^2 and (0 - 0.25 + 0.5)^2, halved, over three rows.
    oracle = regression.dro(batch, tau=0.5)
    assert oracle.loss(LOGP) == pytest.approx(0.5 * (0.0625 + 0.0625) / 3)
    critic = np.full((3, 3), 0.5)  # (0.5 - 1)^2 and (-0.5 + 0.5)^2
    assert oracle.loss(LOGP, value=critic) == pytest.approx(0.5 * 0.25 / 3)
    slope = methods.gradient(oracle.loss, LOGP, wrt="value", value=critic)
    np.testing.assert_allclose(slope, [[0, 0.5 / 3, 0], [0, 0, 0], [0, 0, 0]], atol=1e-8)
    np.testing.assert_allclose(oracle.credit[:, 1], [0.75, -0.25, 0])


def test_dro_on_tokens_by_hand():
    batch = three_rows(value=[[0, 0.25, 9]] * 3)
    policy = 0.75 * (0.5 + 1.5) + -0.25 * -1
    penalty = 0.5 * 0.5 * (0.25 + 2.25 + 1 + 81)
    got = regression.dro(batch, tau=0.5, form="token").loss(LOGP)
    assert got == pytest.approx(-(policy - penalty) / 4)


def test_rebel_by_hand():
    assert regression.rebel(three_rows()).loss(LOGP) == pytest.approx((3 - 1) ** 2)
    assert regression.rebel(three_rows(), eta=2.0).loss(LOGP) == pytest.approx(0.5**2)
    # All three pairs: x 2, -1, 9 against 1, 0, 0.5; a lone row is a group without a pair.
    whole = three_rows(scored=[True] * 3)
    pairs = (3 - 1) ** 2 + (-7 - 0.5) ** 2 + (-10 + 0.5) ** 2
    assert regression.rebel(whole).loss(LOGP) == pytest.approx(pairs / 3)
    alone = three_rows(group=[0, 0, 1], scored=[True] * 3)
    assert regression.rebel(alone).loss(LOGP) == pytest.approx(4 / 2)


def test_gvpo_by_hand():
    # x less 1/2: 1.5 and -1.5; R less 1/2: 0.5 and -0.5; three rows of which one has no target.
    oracle = regression.gvpo(three_rows())
    assert oracle.loss(LOGP) == pytest.approx(2 * 0.5 * (0.15 - 0.5) ** 2 / 2)
    other = regression.gvpo(three_rows(), beta=2.0).loss(LOGP)
    assert other == pytest.approx((3 - 0.5) ** 2 / 2)


@pytest.mark.parametrize("seed", [0, 1])
def test_rebel_is_gvpo_up_to_a_constant_when_all_rows_have_tokens_and_scores(seed):
    batch = random_batch(seed)
    rows = np.flatnonzero((batch.length > 0) & (batch.group >= 0))
    batch = replace(batch, **{k: v[rows] for k, v in vars(batch).items() if k != "parts"})
    batch = replace(batch, scored=np.ones(len(rows), bool))
    logp = random_logp(batch, seed=1)
    four = 4 * regression.gvpo(batch, beta=0.5).loss(logp)
    assert regression.rebel(batch, eta=2.0).loss(logp) == pytest.approx(four)


def test_holding_the_mean_of_a_whole_group_changes_no_gradient():
    batch = three_rows(scored=[True] * 3)
    held, free = (
        methods.gradient(regression.gvpo(batch, hold_mean=hold).loss, LOGP)
        for hold in (True, False)
    )
    np.testing.assert_allclose(held, free, atol=1e-7)
    beta_times_error = 0.1 * (0.1 * (2 - 10 / 3) - 0.5) / 2  # row 0: x - mean, R - mean
    np.testing.assert_allclose(held[0], [0, beta_times_error, beta_times_error], atol=1e-7)


def test_kimi_by_hand():
    batch = three_rows()
    # A = 0.5 and -0.5; tau = 0.25: (2 - 2)^2 and (-2 + 1)^2 over three rows.
    oracle = regression.kimi_pmd(batch, tau=0.25)
    assert oracle.loss(LOGP) == pytest.approx(0.125 * 1 / 3)
    slope = methods.gradient(oracle.loss, LOGP)
    np.testing.assert_allclose(slope, [[0, 0, 0], [0, -(-0.5 + 0.25) / 3, 0], [0, 0, 0]], atol=1e-8)
    loo = regression.kimi_pmd(batch, tau=0.25, baseline="loo", per_token=True).loss(LOGP)
    assert loo == pytest.approx(0.125 * ((4 - 2) ** 2 / 2 + (-4 + 1) ** 2) / 3)


def test_partition_baseline_by_hand():
    batch = outcomes([1, 0, 3], [0, 0, 0])
    free = math.log((math.exp(0) + math.exp(3)) / 2)
    got = regression.partition_baseline(batch, pieces.outcome_return(batch), 1.0)
    assert got[0] == pytest.approx(1 - free)
    cold = regression.partition_baseline(batch, pieces.outcome_return(batch), 1e-3)
    np.testing.assert_allclose(cold, [-2, -3, 2], atol=1e-3)  # the best of the others
    flat = outcomes([1, 1], [0, 0])
    assert not regression.partition_baseline(flat, np.ones(2), 1.0).any()


def test_length_reward_by_hand():
    batch = make(
        [".x...", ".xx..", ".xxx.", ".xxxx", ".x..."],
        [[0, 1, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 0], [0, 1, 0, 0, 0]],
        [0, 0, 0, 0, 1],
    )
    got = regression.length_reward(batch, pieces.outcome_return(batch))
    np.testing.assert_allclose(got, [0.5, 0, 0.5 - 2 / 3, -0.5, 0])
    credit = regression.kimi_pmd(batch, length_penalty=1.0).credit
    mean = (1.5 + 0 + (1.5 - 2 / 3) - 0.5) / 4
    np.testing.assert_allclose(credit[[0, 3], 1], [1.5 - mean, -0.5 - mean])


def test_a_star_po_by_hand():
    batch = three_rows(optimal_value=[0.8, 0.8, 0.8])
    got = regression.a_star_po(batch, beta2=0.5).loss(LOGP)
    assert got == pytest.approx(((1 - 0.2) ** 2 + (-0.5 + 0.8) ** 2) / 3)


def test_optimal_value_by_hand():
    assert regression.optimal_value([1, 0], 0.5) == pytest.approx(
        0.5 * math.log((math.exp(2) + 1) / 2)
    )
    assert regression.optimal_value([0.3] * 4, 0.5) == pytest.approx(0.3)
    assert regression.optimal_value([1, 0], 1e3) == pytest.approx(0.5, abs=1e-3)  # the mean


def test_flowrl_by_hand():
    ref = np.array([[0, 0.25, 0.25], [0, 0, 0], [0, 0, 0]])
    batch = three_rows(logp_ref=ref, logp_old=LOGP - np.array([[0, 1, 2], [0, -1, 0], [0, 0, 0]]))
    oracle = regression.flowrl(batch, beta=2.0, eps=0.0)
    log_z = np.array([0.5, 0.5, 0.5])
    root = 1 / math.sqrt(2)
    first = 10 * (0.5 + 0.75 - 2 * root) ** 2  # exp(3) is cut to 10
    second = math.exp(-1) * (0.5 - 1 + 2 * root) ** 2
    assert oracle.loss(LOGP, log_z=log_z) == pytest.approx((first + second) / 3)
    # The weight is held, log Z is trained.
    moved = oracle.loss(LOGP, log_z=log_z, detached_logp=batch.logp_old)
    assert moved == pytest.approx((first / 10 + second * math.e) / 3)
    h = 1e-6
    ends = [oracle.loss(LOGP, log_z=log_z + s * h * np.eye(3)[0]) for s in (1, -1)]
    slope = (ends[0] - ends[1]) / (2 * h)
    assert slope == pytest.approx(20 * (1.25 - 2 * root) / 3)
