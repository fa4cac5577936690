"""Distillation against literals worked out by hand."""

import math

import numpy as np
import pytest

from . import aggregate, distillation, methods
from .handmade import make

# l_sampler - l_teacher: 1, -2 and 0.5 (row 0, last of them), -1 (row 1).
TEACHER = {"logp_teacher": [[9, -1, 2, -0.5], [9, 1, 9, 9]]}


def two_rows(**fields):
    return make([".xxx", ".x.."], [[0, 0, 0, 1], [0, 0, 0, 0]], [0, 0], **{**TEACHER, **fields})


def test_divergences_by_hand():
    s, t = [0.5, 0.5], [1.0, 0.0]
    mixed = [0.75, 0.25]
    expected = 0.5 * math.log(1 / 0.75) + 0.5 * (0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(2))
    assert distillation.jsd(s, t, 0.5) == pytest.approx(expected)
    assert sum(mixed) == 1
    assert distillation.jsd(s, t, 0.0) == pytest.approx(math.log(2))  # KL(T || S)
    tilted = distillation.jsd([0.5, 0.5], [0.8, 0.2], 0.1)
    m = [0.53, 0.47]
    teacher = 0.8 * math.log(0.8 / m[0]) + 0.2 * math.log(0.2 / m[1])
    student = 0.5 * math.log(0.5 / m[0]) + 0.5 * math.log(0.5 / m[1])
    assert tilted == pytest.approx(0.1 * teacher + 0.9 * student)
    assert distillation.jsd([0.5, 0.5], [0.8, 0.2], 1.0) == pytest.approx(
        0.5 * math.log(0.5 / 0.8) + 0.5 * math.log(0.5 / 0.2)
    )


def test_gkd_is_a_token_mean_of_every_action():
    batch = two_rows(scored=[True, False])
    divergence = np.array([[np.nan, 1, 2, 3], [np.nan, 6, np.nan, np.nan]])
    assert distillation.gkd(batch).loss(batch.logp_old, jsd_teacher=divergence) == 3


def test_teacher_credit_by_hand():
    credit = distillation.teacher_credit(two_rows(), 2.0)
    assert credit.tolist() == [[0, -2, 4, -1], [0, 2, 0, 0]]
    ahead = distillation.teacher_credit(two_rows(), 1.0, 0.5)
    assert ahead[0].tolist() == [0, -1 + 0.5 * 2 - 0.25 * 0.5, 2 - 0.5 * 0.5, -0.5]
    some = two_rows(scored=[True, False])
    assert not distillation.teacher_credit(some, 1.0)[1].any()
    assert distillation.teacher_credit(some, 1.0, scored_only=False)[1, 1] == 1


def test_opd_moves_against_the_sampler_and_has_the_gradient_of_k2_there():
    batch = two_rows(logp_sampler=np.full((2, 4), -0.25))
    oracle = distillation.opd(batch)
    up = batch.logp_sampler + math.log(3)
    assert oracle.loss(up) == pytest.approx(-3 * (-0.75 + 2.25 - 0.25 + 1.25) / 4)
    slope = methods.gradient(oracle.loss, batch.logp_sampler)
    k2 = (batch.logp_sampler - batch.logp_teacher) * batch.mask / 4
    np.testing.assert_allclose(slope, k2, atol=1e-8)
    clipped = distillation.opd(batch, clip=(0.2, 0.2), anchor=batch.logp_sampler).loss(up)
    assert clipped == pytest.approx(-(-0.75 * 3 + 2.25 * 1.2 - 0.25 * 3 + 1.25 * 1.2) / 4)


def test_iw_opd_by_hand():
    batch = two_rows()
    # |gap| 1, 2, 0.5 of 3.5: before them 0, 1 and 3.
    weights = distillation.prefix_weights(batch, distillation.teacher_credit(batch, 1.0), 0.5)
    np.testing.assert_allclose(weights[0, 1:], [1.5, 1 + 0.5 * 2.5 / 3.5, 1 + 0.5 * 0.5 / 3.5])
    logp = np.array([[0, -1, -2, -3], [0, -4.0, 0, 0]])
    total = weights[0, 1] * 1 - weights[0, 2] * 4 + weights[0, 3] * 1.5 - 1.5 * 4
    assert distillation.iw_opd(batch).loss(logp) == pytest.approx(-total / 4)
    equal = two_rows(logp_teacher=np.zeros((2, 4)))
    assert distillation.iw_opd(equal).loss(logp) == 0


def test_future_mean_by_hand():
    batch = two_rows()
    reward = np.array([[7, 1, 2, 4], [7, 3, 7, 7]], float)
    ahead = distillation.future_mean(batch, reward, gamma=1.0, current=False)
    assert ahead.tolist() == [[0, 3, 4, 0], [0, 0, 0, 0]]
    current = distillation.future_mean(batch, reward, gamma=0.5, current=True)
    assert current.tolist() == [[0, 1, 2, 4], [0, 3, 0, 0]]  # (1 + 1 + 1) / 3, (2 + 2) / 2


def test_minillm_by_hand():
    batch = two_rows(logp_sampler=np.full((2, 4), -math.log(2)))
    # Rewards l_teacher - l_old = -1, 2, -0.5: credit 0.75, -0.5 and 0; the ratio is 2 and 1.2 cut.
    oracle = distillation.minillm(batch)
    policy = -(0.75 * 1.2 - 0.5 * 2) / 4
    assert oracle.loss(batch.logp_old) == pytest.approx(policy)
    divergence = np.array([[9.0, 1, 2, 3], [9, 6, 9, 9]])
    assert oracle.loss(batch.logp_old, kl_teacher=divergence) == pytest.approx(policy + 3)
    code = distillation.minillm(batch, current=True, reward_scale=0.5).credit
    np.testing.assert_allclose(code, [[0, 1 / 3, 1.5, -1], [0, 2, 0, 0]])


def test_sdpo_by_hand():
    batch = two_rows(logp_old=np.full((2, 4), -1.0))
    logp = np.full((2, 4), -1 + math.log(3))
    oracle = distillation.sdpo(batch)
    gaps = sum(logp[0, 1] - teacher for teacher in (-1, 2, -0.5, 1))
    assert oracle.loss(logp) == pytest.approx(2 * gaps * logp[0, 1] / 4)
    plain = distillation.sdpo(batch, cap=None)
    assert plain.loss(logp) == pytest.approx(gaps * logp[0, 1] / 4)
    wide = distillation.sdpo(batch, cap=9.0)
    assert wide.loss(logp) == pytest.approx(3 * gaps * logp[0, 1] / 4)
    slope = methods.gradient(oracle.loss, logp)
    np.testing.assert_allclose(slope[1, 1], 2 * (logp[0, 1] - 1) / 4)


def test_sdpo_counts_rows_with_a_teacher_and_mixes_with_grpo():
    batch = two_rows()
    rows = np.array([True, False])
    divergence = np.array([[9.0, 1, 2, 3], [9, 6, 9, 9]])
    full = distillation.sdpo(batch, full=True, rows=rows)
    assert full.loss(batch.logp_old, jsd_teacher=divergence) == 2
    mixed = distillation.sdpo(
        batch, full=True, distillation=0.25, aggregation=aggregate.sequence_mean, eps=0.0
    )
    grpo = -(math.sqrt(0.5) - math.sqrt(0.5)) / 2
    got = mixed.loss(batch.logp_old, jsd_teacher=divergence)
    assert got == pytest.approx(0.25 * (2 + 6) / 2 + 0.75 * grpo)
    up = np.full((2, 4), math.log(1.5))
    policy = -(1.2 - 1.5) * math.sqrt(0.5) / 2
    got = mixed.loss(up, jsd_teacher=divergence)
    assert got == pytest.approx(0.25 * 1.5 * (2 + 6) / 2 + 0.75 * policy)


def gold_rows():
    teacher = np.zeros((2, 4, 2))
    teacher[0, 1], teacher[0, 3] = [0.5, 0.25], [1.0, 0.0]
    span = [[-1, 4, 4, 2], [-1, -1, -1, -1]]
    return two_rows(span=span, teacher_sorted_prob=teacher)


def test_gold_by_hand():
    batch = gold_rows()
    student = np.full((2, 4, 2), np.nan)
    student[0, 1], student[0, 3] = [0.75, 0.25], [0.75, 0.125]
    logp = np.array([[0, -9, math.log(0.5), -9], [0, -9, 0, 0]])
    # Span 4 has a later token of probability 1/2; row 1 has none and counts.
    first = abs(0.375 - 0.5) + abs(0.125 - 0.25)
    second = abs(0.75 - 1) + 0.125
    oracle = distillation.gold(batch)
    assert oracle.loss(logp, sorted_prob=student) == pytest.approx((first + second) / 2 / 2)
    slope = methods.gradient(oracle.loss, logp, sorted_prob=student)
    np.testing.assert_allclose(slope[0], [0, 0, -0.5 / 4, 0], atol=1e-8)
    divergence = np.array([[9.0, 1, 9, 3], [9, 9, 9, 9]])
    mixed = distillation.gold(batch, hybrid=0.25)
    got = mixed.loss(logp, sorted_prob=student, jsd_teacher=divergence)
    assert got == pytest.approx(0.75 * (first + second) / 4 + 0.25 * (1 + 3) / 4)


def test_the_three_compositions_differ():
    batch = two_rows()
    root = math.sqrt(0.5)
    added = distillation.grpo_opd(batch, coefficient=2.0, eps=0.0)
    np.testing.assert_allclose(added.credit[0], [0, root - 2, root + 4, root - 1])
    # Outcomes 1 + 2 * 0.5 and 0 + 2 * 1 tie; with coefficient 1 they are 1.5 and 1.
    tied = distillation.grpo_opd(batch, at="reward", coefficient=2.0)
    assert not tied.credit.any()
    before = distillation.grpo_opd(batch, at="reward", eps=0.0)
    np.testing.assert_allclose(before.credit[:, 1], [root, -root])
    up = np.full((2, 4), math.log(1.5))
    apart = distillation.grpo_opd(batch, at="loss", coefficient=2.0, eps=0.0)
    grpo = -(3 * 1.2 - 1.5) * root / 4
    assert apart.loss(up) == pytest.approx(grpo - 2 * 1.5 * (0.5 + 1) / 4)
    np.testing.assert_allclose(apart.credit[0, 1:], root)
