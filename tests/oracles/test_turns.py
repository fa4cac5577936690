"""Credit by turn against literals worked out by hand."""

import math

import numpy as np
import pytest

from . import methods, pieces, turns
from .batch import random_batch
from .handmade import make, outcomes

# Row 0: turns of 2, 1 and 1 tokens earning 1, 0 and 2; row 1: turns of 1 and 2 earning 0 and 1.
MASK = [".xx.xx", ".x.xx."]
TURN = [[-1, 0, 0, -1, 1, 2], [-1, 0, -1, 1, 1, -1]]
REWARD = [[0, 0.25, 0.75, 0, 0, 2], [0, 0, 0, 1, 0, 0]]
ANCHOR = [[-1, 5, 5, -1, 6, 5], [-1, 5, -1, 8, 8, -1]]
ROOT = math.sqrt(0.5)


def two_rows(**fields):
    return make(MASK, REWARD, [0, 0], **{"turn": TURN, "anchor": ANCHOR, **fields})


def test_turns_and_their_rewards():
    batch = two_rows()
    assert turns.turns(batch, 0) == [[1, 2], [4], [5]]
    assert turns.turn_rewards(batch, 0) == [1, 0, 2]
    assert turns.discounted([1, 0, 2], 0.5) == [1.5, 1, 2]
    assert turns.last_turn_outcome(batch).tolist() == [2, 1]


def test_anchor_credit_by_hand():
    batch = two_rows()
    # State 5 is met by turns with returns 1.5, 2 (row 0) and 0.5 (row 1): mean 4/3.
    credit = turns.anchor_credit(batch, 0.5, normalise=False)
    third = 1 / 3
    np.testing.assert_allclose(credit[0], [0, third / 2, third / 2, 0, 0, 2 * third], atol=1e-15)
    np.testing.assert_allclose(credit[1], [0, -2.5 * third, 0, 0, 0, 0])
    scale = np.std([1.5, 2, 0.5], ddof=1)
    full = turns.anchor_credit(batch, 0.5, eps=0.0)
    np.testing.assert_allclose(full, credit / scale)


def test_anchor_credit_is_within_a_group_and_needs_an_anchor():
    apart = two_rows(anchor=np.where(np.array(TURN) >= 0, -1, -1))
    assert not turns.anchor_credit(apart, 0.5).any()
    unscored = two_rows(scored=[False, True])
    assert not turns.anchor_credit(unscored, 0.5).any()
    groups = make([".x", ".x"], [[0, 1], [0, 0]], [0, 1], anchor=[[-1, 3], [-1, 3]])
    assert not turns.anchor_credit(groups, 0.5).any()


def test_gigpo_adds_both_parts():
    batch = two_rows()
    credit = turns.gigpo(batch, gamma=0.5, step_weight=2.0, normalise=False).credit
    third = 1 / 3
    np.testing.assert_allclose(
        credit[0],
        [0, 1 + third, 1 + third, 0, 1, 1 + 4 * third],  # outcomes 3 and 1
    )
    scaled = turns.gigpo(batch, gamma=0.5, step_weight=0.0, eps=0.0).credit
    np.testing.assert_allclose(scaled[:, 1], [ROOT, -ROOT])
    # Four and three tokens, k3 of one nat.
    shifted = two_rows(logp_ref=np.full((2, 6), -1.0))
    gap = turns.gigpo(shifted).loss(shifted.logp_old) - turns.gigpo(batch).loss(batch.logp_old)
    assert gap == pytest.approx(0.01 * math.exp(-1))


def test_mt_grpo_by_hand():
    third_row = [".x....", [-1, 0, -1, -1, -1, -1], [0, 9, 0, 0, 0, 0]]
    batch = make(
        [*MASK, third_row[0]], [*REWARD, third_row[2]], [0, 0, 0], turn=[*TURN, third_row[1]]
    )
    credit = turns.mt_grpo(batch, coefficient=0.5, eps=0.0).credit
    outcome = (np.array([2, 1, 9]) - 4) / math.sqrt(19)
    # Turn 0 of rows 0 and 1 only (1 and 0): row 2 ends with it. Turn 1 goes on in row 0 alone.
    first = [0, outcome[0] + 0.5 * ROOT, outcome[0] + 0.5 * ROOT, 0, outcome[0], outcome[0]]
    np.testing.assert_allclose(credit[0], first)
    np.testing.assert_allclose(
        credit[1], [0, outcome[1] - 0.5 * ROOT, 0, outcome[1], outcome[1], 0]
    )
    np.testing.assert_allclose(credit[2, 1], outcome[2])


def test_mt_grpo_on_single_turns_is_grpo_over_tokens():
    batch = outcomes([1, 0, 0.5], [0, 0, 0])
    got = turns.mt_grpo(batch, eps=1e-6).credit
    np.testing.assert_allclose(got, methods.grpo(batch).credit)


def test_turn_gae_by_hand():
    value = [[9, 1, 9, 9, 2, 4], [9, 3, 9, 5, 9, 9]]
    batch = two_rows(value=value, bootstrap_value=[0, 6])
    advantage, returns = turns.turn_gae(batch, gamma=0.5, lam=0.5)
    third = 2 + 0 - 4
    second = 0 + 0.5 * 4 - 2 + 0.25 * third
    first = 1 + 0.5 * 2 - 1 + 0.25 * second
    np.testing.assert_allclose(advantage[0], [0, first, first, 0, second, third])
    np.testing.assert_allclose(returns[0], [0, first + 1, 0, 0, second + 2, third + 4])
    last = 1 + 0.5 * 6 - 5
    np.testing.assert_allclose(advantage[1, [3, 4]], last)


def test_turn_ppo_loss_by_hand():
    batch = two_rows(value=np.zeros((2, 6)))
    oracle = turns.turn_ppo(batch, gamma=0.0, lam=0.0)  # credit: what each turn earns
    logp = np.zeros((2, 6))
    logp[0, 1], logp[0, 5], logp[1, 3] = math.log(1.21), math.log(2), math.log(0.49)
    # Turns 1 * 1.1, 0, 2 * 1.2, 0 and 1 * 0.7: the geometric mean of a turn's ratios.
    policy = -(1.1 + 2 * 1.2 + 0.7) / 5
    assert oracle.loss(logp) == pytest.approx(policy)
    critic = np.full((2, 6), 0.1)  # errors at five first tokens, targets 1, 0, 2, 0, 1
    error = 0.5 * (0.81 + 0.01 + 3.61 + 0.01 + 0.81) / 5
    assert oracle.loss(logp, value=critic) == pytest.approx(policy + 0.1 * error)
    np.testing.assert_allclose(oracle.weight[0], [0, 0.1, 0.1, 0, 0.2, 0.2])


def test_two_level_gae_by_hand():
    value = [[9, 1, 2, 9, 3, 4], [9, 0, 9, 1, 5, 9]]
    batch = two_rows(value=value, bootstrap_value=[0, 6])
    advantage, returns = turns.two_level_gae(batch, gamma=0.5, lam=0.5, turn_gamma=0.8)
    third = 2 - 4
    second = 0 + 0.8 * 4 - 3 + 0.4 * third
    first = 1 + 0.8 * 3 - 2 + 0.4 * second  # from the critic at the turn's last token
    inner = 0 + 0.5 * 2 - 1 + 0.25 * first
    np.testing.assert_allclose(advantage[0], [0, inner, first, 0, second, third])
    np.testing.assert_allclose(returns[0], [0, inner + 1, first + 2, 0, second + 3, third + 4])
    last = 1 + 0.8 * 6 - 5  # the reward is earned on the turn's first token
    np.testing.assert_allclose(advantage[1, [3, 4]], [0.5 * 5 - 1 + 0.25 * last, last])
    assert advantage[1, 1] == pytest.approx(0 + 0.8 * 5 - 0 + 0.4 * last)


def test_with_one_discount_and_single_token_turns_both_turn_gaes_are_gae():
    batch = random_batch(4)
    every = np.where(batch.mask, np.cumsum(batch.mask, axis=1) - 1, -1)
    batch = type(batch)(**{**vars(batch), "turn": every})
    advantage, returns = pieces.gae(batch, batch.reward, gamma=0.9, lam=0.8)
    turn = turns.turn_gae(batch, gamma=0.9, lam=0.8)
    bi = turns.two_level_gae(batch, gamma=0.3, lam=0.8, turn_gamma=0.9)
    for got in (turn, bi):
        np.testing.assert_allclose(got[0], advantage, atol=1e-12)
        np.testing.assert_allclose(got[1], returns, atol=1e-12)


def test_bi_level_gae_whitens_after_the_targets():
    batch = two_rows(value=np.zeros((2, 6)))
    oracle = turns.bi_level_gae(batch)
    advantage, returns = turns.two_level_gae(batch, gamma=1.0, lam=1.0, turn_gamma=0.95)
    np.testing.assert_array_equal(oracle.returns, returns)
    np.testing.assert_allclose(oracle.credit, pieces.whiten_tokens(batch, advantage))
    raw = turns.bi_level_gae(batch, whiten=False)
    gap = raw.loss(batch.logp_old, value=batch.value) - raw.loss(batch.logp_old)
    assert gap == pytest.approx(0.1 * 0.5 * (returns[batch.mask] ** 2).mean())


def test_starpo_keeps_the_most_uncertain_groups():
    # Deviations: 0 (one member), 0.71, 0.35, 1.41 and padding.
    batch = outcomes([1, 0, 1, 0, 0.5, 0, 2, 9], [4, 3, 3, 2, 2, 1, 1, -1])
    kept = turns.most_uncertain(batch, 0.5)
    assert kept.tolist() == [False, True, True, False, False, True, True, False]
    assert turns.most_uncertain(batch, 0.01).tolist() == [False] * 5 + [True, True, False]
    grpo = turns.starpo_s(batch, fraction=0.5, critic=False)
    np.testing.assert_allclose(grpo.weight[:, 1], kept / 4)
    up = np.full((8, 2), math.log(1.5))
    first = 1.28 * ROOT - 1.5 * ROOT  # of each kept pair; 1e-6 in the denominator
    assert grpo.loss(up) == pytest.approx(-2 * first / 4, rel=1e-5)


def test_starpo_whitens_and_counts_only_what_it_keeps():
    batch = outcomes([1, 0, 5, 5], [0, 0, 1, 1])
    oracle = turns.starpo_s(batch, fraction=0.5)
    np.testing.assert_allclose(oracle.credit[:, 1], [ROOT, -ROOT, 0, 0], rtol=1e-6)
    assert oracle.weight[:, 1].tolist() == [0.5, 0.5, 0, 0]
    whole = turns.starpo(batch, beta=0.0)
    ppo = methods.ppo(batch, beta=0.0, gamma=1.0, lam=1.0)
    np.testing.assert_array_equal(whole.credit, ppo.credit)
