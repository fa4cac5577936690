"""Trajectory-side formulas of the newer methods against literals worked out by hand."""

import math

import numpy as np
import pytest

from . import surrogate_pieces as sp


def slope(f, x, h=1e-6):
    return (f(x + h) - f(x - h)) / (2 * h)


def test_log_clip_only_lowers_the_objective():
    cases = [(0.7, 1, 0.4), (-0.7, 1, -0.7), (0.7, -1, 0.7), (-0.7, -1, -0.4), (0.1, -1, 0.1)]
    for shift, credit, expected in cases:
        assert sp.log_clipped(shift, credit, 0.4, 0.4) == expected


def test_soft_gate_by_hand():
    assert sp.soft_gate(1.0, 2.0) == pytest.approx(1.0)
    assert sp.soft_gate(3.0, 0.5) == pytest.approx(8 / (1 + math.exp(-1)))
    assert slope(lambda r: sp.soft_gate(r, 1.05), 1.0) == pytest.approx(1.0)


def test_gamma_weight_by_hand():
    assert sp.gamma_weight(0.0, 2.0, 3.0) == 1.0
    assert sp.gamma_weight(math.log(2), 2.0, 3.0) == pytest.approx(4 * math.exp(-3))
    assert slope(lambda x: sp.gamma_weight(x, 3.0, 2.0), math.log(1.5)) == pytest.approx(
        0, abs=1e-6
    )


@pytest.mark.parametrize(
    ("ratio", "credit", "weight"),
    [
        (0.5, 2, 2.0),  # reciprocal
        (1.25, 2, 0.8),
        (1.5, 2, 0.0),  # hard clip above
        (0.2, 2, 3.0),  # 1/r = 5, held at the cap
        (1.5, -2, 1.5),  # as in PPO
        (0.5, -2, 0.0),  # hard clip below
        (4.0, -2, 3.0),  # held at the cap
    ],
)
def test_aspo_gradient_weights(ratio, credit, weight):
    at = math.log(ratio) - 1.0
    kw = {"clip": (0.2, 0.3), "cap": 3.0}
    got = slope(lambda logp: sp.aspo_objective(logp, at, -1.0, credit, **kw), at)
    assert got == pytest.approx(credit * weight)


def test_aspo_values_by_hand():
    kw = {"clip": (0.2, 0.3), "cap": 3.0}
    values = [(0.5, 2, 4.0), (1.5, 2, 2 / 1.3), (0.5, -2, -1.6), (1.5, -2, -3.0), (1.5, 0, 0.0)]
    for ratio, credit, expected in values:
        at = math.log(ratio)
        assert sp.aspo_objective(at, at, 0.0, credit, **kw) == pytest.approx(expected)
    far = math.log(0.2)
    assert sp.aspo_objective(far, far, 0.0, 2.0, **kw) == pytest.approx(2 * 3 * far)


@pytest.mark.parametrize(
    ("q", "low", "high"),
    [(1.0, 0.8, 0.5 + 0.5 * math.sqrt(1.8)), (0.01, 0.5, 5.0), (0.0001, 0.5, 10.0)],
)
def test_probability_dependent_bounds(q, low, high):
    got = sp.dcpo_bounds(math.log(q), 0.16, 0.2, 10.0)
    np.testing.assert_allclose(got, [low, high])


def test_probability_dependent_bounds_solve_their_equation():
    for q in (0.7, 0.9):
        low, high = sp.dcpo_bounds(math.log(q), 0.16, 0.2, 10.0)
        np.testing.assert_allclose([(1 - low) * low * q, (high - 1) * high * q], [0.16, 0.2])


def test_divergence_masks_by_hand():
    log = math.log
    assert sp.tv_open(log(0.6), log(0.5), 1.0, 0.15, 0.15)
    assert not sp.tv_open(log(0.7), log(0.5), 1.0, 0.15, 0.15)
    assert sp.tv_open(log(0.7), log(0.5), -1.0, 0.15, 0.15)  # it moves towards the old policy
    assert not sp.tv_open(log(0.3), log(0.5), -1.0, 0.15, 0.15)
    # At q = 1/2 the divergence is -log(4 p (1 - p)) / 2: 0.087 at 0.7, 0.020 at 0.6.
    for p, credit, expected in ((0.7, 1, False), (0.6, 1, True), (0.3, 1, True), (0.7, -1, True)):
        assert sp.kl_open(log(p), log(0.5), credit, 0.05, 0.05) is expected
    assert not sp.kl_open(log(0.7), log(0.5), 1.0, 0.05, 0.087)
    assert sp.kl_open(log(0.7), log(0.5), 1.0, 0.05, 0.088)
    assert not sp.kl_open(log(0.3), log(0.5), -1.0, 0.05, 0.05)


def test_contributions_by_hand():
    ratio, credit, prob = np.array([1.5, 0.5, 1]), np.array([1.0, -1, 0]), np.array([0.5, 0.25, 1])
    share = sp.positive_share(ratio, credit, prob, 0.6, 1.2)
    assert share == pytest.approx(0.5 * 1.2 / (0.5 * 1.2 + 0.25 * 0.6))
    assert sp.positive_to_negative(ratio, credit, prob, 0.6, 1.2) == pytest.approx(1.2 / 0.6)
    assert sp.positive_to_negative(ratio, abs(credit), prob, 0.6, 1.2) == math.inf
    assert sp.positive_share(ratio, 0 * credit, prob, 0.6, 1.2) == math.inf
    big = sp.positive_to_negative(np.array([1.0, 5.0]), np.array([1.0, -1.0]), None, 0.6, 1.2)
    assert big == pytest.approx(1 / 5)  # a negative token is not cut from above


def test_bound_search_by_hand():
    kw = {"low": (0.6, 0.9, 0.1), "high": (1.0, 1.5, 0.2)}

    def run(contribution, target, high_first):
        return sp.search_bounds(contribution, target=target, high_first=high_first, **kw)

    np.testing.assert_allclose(run(lambda low, high: high, 1.1, True), (0.6, 1.2))
    np.testing.assert_allclose(run(lambda low, high: high, 1.1, False), (0.9, 1.2))
    np.testing.assert_allclose(run(lambda low, high: low + high, 2.15, True), (0.7, 1.5))
    np.testing.assert_allclose(run(lambda low, high: 0, 1.0, True), (0.9, 1.5))
    np.testing.assert_allclose(run(lambda low, high: 1, 1.0, True), (0.6, 1.0))


def test_covariances_by_hand():
    credit, held = np.array([[1.0, 3, 99]]), np.array([[-1.0, -4, 99]])
    got = sp.covariances(credit, held, [(0, 0), (0, 1)])
    assert got == {(0, 0): -1.5, (0, 1): -1.5}


def test_quantile_by_hand():
    assert sp.quantile([4, 1, 3, 2], 0.8) == pytest.approx(3.4)
    assert sp.quantile([4, 1, 3, 2], 1.0) == 4
    assert sp.quantile([7], 0.8) == 7


def test_entropy_controller_by_hand():
    kw = {"target": 0.2, "step": 0.3, "low": 0.0, "high": 0.5}
    moves = [(0.1, 0.1, 0.4), (0.4, 0.1, 0.5), (0.4, 0.3, 0.1), (0.1, 0.3, 0.0)]
    for coefficient, measured, expected in moves:
        got = sp.entropy_controller(coefficient, measured, **kw)
        assert got == pytest.approx(expected)


def test_taper_by_hand():
    assert sp.tapered(-2.0, 1.0) == 1.0
    assert sp.tapered(3.0, -1.0) == 1.0
    assert sp.tapered(-2.0, -1.0) == math.exp(-2.0)


def test_rec_masks_by_hand():
    clip, outer = (0.2, 0.3), (0.6, 2.0)
    ratios = (0.3, 0.5, 1.0, 1.5, 3.5)
    expected = {
        ("none", 1): [1, 1, 1, 1, 1],
        ("two_side", 1): [0, 0, 1, 0, 0],
        ("one_side", 1): [1, 1, 1, 0, 0],
        ("one_side", -1): [0, 0, 1, 1, 1],
        ("ring", 1): [1, 0, 1, 0, 0],
        ("ring", -1): [0, 0, 1, 0, 1],
    }
    for (mode, credit), opened in expected.items():
        assert [sp.rec_open(r, credit, mode, clip, outer) for r in ratios] == opened, mode
    with pytest.raises(ValueError, match="clip mode"):
        sp.rec_open(1.0, 1.0, "both", clip, outer)
