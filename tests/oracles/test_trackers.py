"""Trackers and process rewards against literals worked out by hand."""

import math

import numpy as np
import pytest

from . import methods, pieces, trackers
from .handmade import make, outcomes


def test_initial_tracker_by_hand():
    got = trackers.initial_tracker([[1, 0, 1], [], [0]])
    np.testing.assert_allclose(got["alpha"], [8 * 2.5 / 4, 0.5, 8 * 0.5 / 2])
    np.testing.assert_allclose(got["beta"], [8 * 1.5 / 4, 0.5, 8 * 1.5 / 2])


@pytest.mark.parametrize(("drift", "kept"), [(0.0, 0.96), (0.006, 2**-0.1), (0.06, 0.875)])
def test_forgetting_is_clipped(drift, kept):
    assert trackers.forgetting(drift) == pytest.approx(kept)


def test_spo_credit_is_taken_before_the_update():
    batch = outcomes(
        [1, 0, 7], [0, 1, 2], prompt=[1, 0, 2], drift=[0, 1, 0], scored=[True, True, False]
    )
    tracker = {"alpha": np.array([3.0, 1.0, 5.0]), "beta": np.array([1.0, 1.0, 5.0])}
    credit = trackers.spo_single_stream(batch, tracker=tracker, eps=0.0).credit
    # 1 - 1/2 and 0 - 3/4: two values whiten to the two roots of 1/2.
    np.testing.assert_allclose(credit[:, 1], [math.sqrt(0.5), -math.sqrt(0.5), 0])
    np.testing.assert_allclose(trackers.success_rate(batch, tracker), [0.5, 0.75, 0.5])
    after = trackers.updated_tracker(batch, tracker)
    np.testing.assert_allclose(after["alpha"], [0.875 * 3, 0.96 * 1 + 1, 5])
    np.testing.assert_allclose(after["beta"], [0.875 + 1, 0.96, 5])
    assert tracker["alpha"].tolist() == [3, 1, 5]


def test_spo_adds_every_row_of_a_prompt_and_whitens_by_row():
    batch = make(
        [".xx", ".x.", ".x."],
        [[0, 0, 1], [0, 0, 0], [0, 1, 0]],
        [0, 0, 0],
        prompt=[0, 0, -1],
    )
    tracker = {"alpha": np.array([2.0]), "beta": np.array([2.0])}
    after = trackers.updated_tracker(batch, tracker)
    np.testing.assert_allclose([after["alpha"][0], after["beta"][0]], [0.96 * 2 + 1] * 2)
    credit = trackers.spo_single_stream(batch, tracker=tracker, eps=0.0).credit
    values = np.array([0.5, -0.5, 0.5])  # a row without a prompt has 1/2; each row counts once
    expected = (values - 1 / 6) / math.sqrt(1 / 3)
    np.testing.assert_allclose(credit[:, 1], expected)


def test_spo_clips_higher():
    batch = outcomes([1, 0], [0, 1])
    tracker = trackers.initial_tracker([[], []])
    loss = trackers.spo_single_stream(batch, tracker=tracker, eps=0.0).loss(np.full((2, 2), 1.0))
    assert loss == pytest.approx(-(1.28 - math.e) * math.sqrt(0.5) / 2)


# Row 0: log-ratios 1 and (last) 4; row 1: 2, 3 and (last) 9.
PRM = {"logp_prm": [[0.0, 1, 4, 0], [0, 2, 3, 9]]}


def prime_rows(**fields):
    return make([".xx.", ".xxx"], [[0, 0, 1, 0], [0, 0, 0, 0]], [0, 0], **{**PRM, **fields})


def test_implicit_reward_leaves_the_last_action_out():
    plain = trackers.implicit_reward(prime_rows(), 0.5, normalise=False)
    np.testing.assert_allclose(plain, [[0, 0.5, 0, 0], [0, 1, 1.5, 0]])
    scaled = trackers.implicit_reward(prime_rows(), 0.5)
    np.testing.assert_allclose(scaled, plain / (2.5 + 1e-6))


def test_prime_credit_by_hand():
    batch = prime_rows()
    process = trackers.process_leave_one_out(
        batch, trackers.implicit_reward(batch, 0.5, normalise=False)
    )
    total = 0.25 + 2.5 / 3  # the row means, the last action counted with 0
    np.testing.assert_allclose(process[0], [0, 1 - total, -total, 0])
    np.testing.assert_allclose(process[1], [0, 2 - total, 3 - total, -total])
    credit = trackers.prime_credit(batch, 0.5, (2.0, 3.0), normalise=False)
    last = 2 * -total + 3 * 1  # the outcome 1 less the other's 0
    np.testing.assert_allclose(credit[0], [0, last + 2 * (1 - total), last, 0])
    whitened = trackers.prime(batch).credit
    assert whitened[batch.mask].std(ddof=1) == pytest.approx(1)
    np.testing.assert_allclose(
        whitened,
        pieces.whiten_tokens(batch, trackers.prime_credit(batch, 0.05, (5, 5), normalise=True)),
    )


def test_prime_trains_its_reward_model_on_all_actions():
    batch = prime_rows(logp_ref=[[9, 1, 1, 9], [9, 0, 0, 0]])
    oracle = trackers.prime(batch, beta=0.5)
    logp, prm = batch.logp_old, batch.logp_prm
    first, second = 0.5 * (5 - 2), 0.5 * 14  # correct, wrong
    loss = math.log(1 + math.exp(-first)) + math.log(1 + math.exp(second))
    assert oracle.loss(logp, logp_prm=prm) - oracle.loss(logp) == pytest.approx(loss / 2)
    slope = methods.gradient(oracle.loss, logp, wrt="logp_prm", logp_prm=prm)
    pull = -0.5 / (1 + math.exp(first)) / 2
    np.testing.assert_allclose(slope[0], [0, pull, pull, 0], atol=1e-8)


def test_a_lone_row_has_no_process_credit():
    batch = prime_rows(scored=[True, False])
    assert not trackers.prime_credit(batch, 0.5, (1.0, 1.0), normalise=True).any()
