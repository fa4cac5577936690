"""Corrections against literals worked out by hand."""

import math

import numpy as np
import pytest

from . import methods, mismatch
from .batch import random_batch, random_logp
from .handmade import make

LOG = math.log
ROOT = 1 / math.sqrt(2)  # GRPO's credit of outcomes 1 and 0
# Row 0: rho 1.5 and 4, product 6. Row 1: rho 0.4. Both rows are on-policy otherwise.
RHO = {"logp_old": [[0, LOG(1.5), LOG(4)], [0, LOG(0.4), 0]]}


def two_rows(**fields):
    return make([".xx", ".x."], [[0, 0, 1], [0, 0, 0]], [0, 0], **{**RHO, **fields})


def loss_at_old(key, batch, **kw):
    return key(batch, beta=0.0, eps=0.0, **kw).loss(batch.logp_old)


@pytest.mark.parametrize(
    ("key", "kw", "first", "second"),
    [
        (mismatch.tis, {}, (1.5 + 2) / 2, 0.4),
        (mismatch.tis, {"level": "sequence", "cap": 5.0}, 5, 0.4),
        (mismatch.tis, {"level": "sequence", "cap": 7.0}, 6, 0.4),
        (mismatch.mis, {}, 0, 0.4),
        (mismatch.mis, {"high": 6.5, "low": 0.5}, 6, 0),
        (mismatch.mis, {"level": "token"}, 1.5 / 2, 0.4),
        (mismatch.icepop, {}, (1.5 + 4) / 2, 0),
        (mismatch.icepop, {"level": "sequence"}, 0, 0),
        (mismatch.decoupled_ppo, {"critic": False}, (1.5 + 4) / 2, 0.4),
        (mismatch.decoupled_ppo, {"critic": False, "cap": 3.0}, (1.5 + 3) / 2, 0.4),
    ],
)
def test_weights_by_hand(key, kw, first, second):
    # A masked token stays in the denominators: 1/2 per row, then 1/L.
    assert loss_at_old(key, two_rows(), **kw) == pytest.approx(-ROOT * (first - second) / 2)


def test_the_kl_term_is_not_weighted():
    batch = two_rows(logp_ref=np.array(RHO["logp_old"]) - 1.0)
    with_kl = mismatch.tis(batch, beta=1.0, eps=0.0).loss(batch.logp_old)
    assert with_kl - loss_at_old(mismatch.tis, batch) == pytest.approx(math.exp(-1))


def test_agreeing_engines_leave_the_base_as_it_is():
    batch = random_batch(1)
    batch = type(batch)(**{**vars(batch), "logp_sampler": batch.logp_old})
    logp, value = random_logp(batch, seed=2), batch.value + 0.3
    for key in (mismatch.tis, mismatch.mis, mismatch.icepop):
        assert key(batch).loss(logp) == pytest.approx(methods.grpo(batch).loss(logp))
    got, ppo = mismatch.decoupled_ppo(batch), methods.ppo(batch)
    assert got.loss(logp, value=value) == pytest.approx(ppo.loss(logp, value=value))
    np.testing.assert_array_equal(got.returns, ppo.returns)


def test_decoupled_ppo_clips_around_the_trainer_and_weighs_by_rho():
    batch = make([".x"], [[0, 2]], [0], logp_old=[[0, LOG(3)]], value=[[0, 1]])
    oracle = mismatch.decoupled_ppo(batch, beta=0.0, whiten=False)  # A = 1, G = 2
    up = np.array([[0, LOG(3) + LOG(1.5)]])
    assert oracle.loss(up) == pytest.approx(-3 * 1.2)
    assert oracle.loss(up, value=np.array([[0, 1.1]])) == pytest.approx(-3.6 + 0.1 * 0.405)


def test_opsm_drops_negative_rows_that_drifted():
    # Mean of l_sampler - l: 0.6 in row 0 and 0.6 in row 1 (0.7 and 0.5).
    batch = make([".x.", ".xx"], [[0, 1, 0], [0, 0, 0]], [0, 0])
    logp = -np.array([[0, 0.6, 0], [0, 0.7, 0.5]])
    grpo = mismatch.opsm(batch, delta=0.61, beta=0.0, eps=0.0).loss(logp)
    positive, negative = -ROOT * math.exp(-0.6) / 2, ROOT * 0.8 / 2  # the clip holds at 0.8
    assert grpo == pytest.approx(positive + negative)
    oracle = mismatch.opsm(batch, beta=0.0, eps=0.0)
    assert oracle.loss(logp) == pytest.approx(positive)
    # The mask looks at the held policy.
    assert oracle.loss(logp, detached_logp=0 * logp) == pytest.approx(positive + negative)


def test_icepop_in_one_ratio_moves_with_the_policy():
    batch = two_rows()
    oracle = mismatch.icepop_one_ratio(batch, eps=0.0)
    assert oracle.loss(batch.logp_old) == pytest.approx(-ROOT * (1.5 + 4) / 3)
    slope = methods.gradient(oracle.loss, batch.logp_old)
    np.testing.assert_allclose(slope, -ROOT / 3 * np.array([[0, 1.5, 4], [0, 0, 0]]), atol=1e-8)
    moved = batch.logp_old + math.log(2)  # 3, 8 and 0.8: another two are inside
    assert oracle.loss(moved) == pytest.approx(-ROOT * (3 - 0.8) / 3)


def test_unbiased_kl_by_hand_and_its_gradient_at_the_old_policy():
    assert mismatch.unbiased_kl(-1.0, -1.5, -2.0) == pytest.approx(math.exp(0.5) * math.exp(-1))
    h = 1e-6
    ends = [mismatch.unbiased_kl(-1.0 + s * h, -1.0, -1.7) for s in (1, -1)]
    assert (ends[0] - ends[1]) / (2 * h) == pytest.approx(0.7)
