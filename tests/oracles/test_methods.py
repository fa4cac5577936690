"""Methods against literals worked out by hand, and identities between them."""

import math
from functools import partial

import numpy as np
import pytest

from . import methods, pieces
from .batch import Batch, random_batch, random_logp, reordered, widened
from .handmade import make, outcomes

SEEDS = [0, 1, 2]
METHODS = {
    "reinforce": methods.reinforce,
    "a2c": methods.a2c,
    "ppo": methods.ppo,
    "rloo": methods.rloo,
    "remax": methods.remax,
    "reinforce_pp": methods.reinforce_pp,
    "grpo": methods.grpo,
    "dr_grpo": methods.dr_grpo,
    "dapo": methods.dapo,
    "gspo": methods.gspo,
    "cispo": methods.cispo,
}
# On-policy the ratio of these is 1, so that every gradient must be that of REINFORCE.
PENALTY_FREE = {
    "a2c": partial(methods.a2c, entropy_coefficient=0.0),
    "grpo": partial(methods.grpo, beta=0.0),
    "gspo_token": partial(methods.gspo, token_gradient=True),
    **{k: f for k, f in METHODS.items() if k not in ("a2c", "grpo")},
}


def on_policy_gradient(make_oracle, batch, **kw):
    oracle = make_oracle(batch, **kw)
    return oracle, methods.gradient(oracle.loss, batch.logp_old)


@pytest.mark.parametrize("key", sorted(PENALTY_FREE))
def test_on_policy_gradient_is_reinforce(key):
    batch = random_batch(3)
    oracle, got = on_policy_gradient(PENALTY_FREE[key], batch)
    np.testing.assert_allclose(got, -oracle.weight * oracle.credit, atol=1e-8)
    assert np.abs(got).max() > 1e-5


@pytest.mark.parametrize("key", sorted(METHODS))
def test_what_is_off_the_mask_changes_nothing(key):
    batch = random_batch(4)
    poison = {
        name: np.where(batch.mask, getattr(batch, name), np.nan)
        for name in ("logp_old", "logp_ref", "logp_sampler", "value")
    }
    logp = random_logp(batch, seed=5, scale=0.2)
    clean, dirty = METHODS[key](batch), METHODS[key](Batch(**{**vars(batch), **poison}))
    np.testing.assert_array_equal(clean.credit, dirty.credit)
    spoiled = np.where(batch.mask, logp, np.nan)
    extra = {"value": batch.value, "entropy": -logp}
    spoiled_extra = {"value": poison["value"], "entropy": -spoiled}
    assert dirty.loss(spoiled, **spoiled_extra) == clean.loss(logp, **extra)
    assert not clean.credit[~batch.mask].any()
    assert not clean.credit[~batch.scored].any()
    assert not clean.weight[~batch.mask].any()


@pytest.mark.parametrize("key", sorted(METHODS))
def test_row_order_and_padding_do_not_matter(key):
    batch = random_batch(6)
    logp = random_logp(batch, seed=7, scale=0.2)
    order = np.random.default_rng(0).permutation(len(batch.group))
    rows = reordered(batch, order)
    wide = np.pad(logp[order], [(0, 0), (0, 2)])
    whole = METHODS[key](batch).loss(logp)
    assert METHODS[key](rows).loss(logp[order]) == pytest.approx(whole, rel=1e-12)
    assert METHODS[key](widened(rows)).loss(wide) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_loo_is_the_scaled_group_mean(seed):
    batch = random_batch(seed)
    rloo, mean = methods.rloo(batch, beta=0.0).credit, methods.dr_grpo(batch).credit
    for n in np.flatnonzero(batch.scored):
        size = len(batch.members(batch.group[n]))
        if size > 1:
            np.testing.assert_allclose(rloo[n], mean[n] * size / (size - 1), atol=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_remax_with_the_group_mean_for_greedy_is_dr_grpo(seed):
    batch = random_batch(seed)
    outcome = pieces.outcome_return(batch)
    final_only = np.zeros(batch.reward.shape)
    mean = np.zeros(len(outcome))
    for n in range(len(outcome)):
        members = batch.members(batch.group[n])
        mean[n] = np.mean([outcome[j] for j in members]) if members else 0.0
        if batch.actions(n):
            final_only[n, batch.actions(n)[-1]] = outcome[n]
        else:
            final_only[n, max(batch.prompt_length[n] - 1, 0)] = outcome[n]
    stub = Batch(**{**vars(batch), "greedy_return": mean, "reward": final_only})
    np.testing.assert_allclose(methods.remax(stub).credit, methods.dr_grpo(stub).credit, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-5, 3e-3])  # inside the clip range, and mostly clipped
def test_gspo_and_gspo_token_are_one_method_for_sequence_credit(scale):
    batch = random_batch(8)
    logp = random_logp(batch, seed=9, scale=scale)
    plain, token = methods.gspo(batch), methods.gspo(batch, token_gradient=True)
    assert plain.loss(logp) == pytest.approx(token.loss(logp), rel=1e-12)
    np.testing.assert_allclose(
        methods.gradient(plain.loss, logp, h=1e-8),
        methods.gradient(token.loss, logp, h=1e-8),
        atol=1e-7,
    )


def test_cispo_without_bounds_is_the_unclipped_policy_gradient():
    batch = random_batch(10)
    logp = random_logp(batch, seed=11)
    cispo = methods.cispo(batch, low=math.inf, high=math.inf)
    unclipped = methods._clip_loss(batch, cispo.credit, cispo.weight, (math.inf, math.inf))
    by_hand = -cispo.weight * cispo.credit * np.exp(np.where(batch.mask, logp - batch.logp_old, 0))
    np.testing.assert_allclose(methods.gradient(cispo.loss, logp), by_hand, atol=1e-8)
    np.testing.assert_allclose(methods.gradient(unclipped, logp), by_hand, atol=1e-8)


def test_a_clip_is_a_ratio_weight_under_a_one_sided_mask():
    batch = random_batch(12)
    logp = random_logp(batch, seed=13)
    oracle = methods.dapo(batch)
    ratio = np.exp(np.where(batch.mask, logp - batch.logp_old, 0))
    open_side = np.where(oracle.credit >= 0, ratio <= 1.28, ratio >= 0.8)
    assert not open_side[batch.mask].all()
    np.testing.assert_allclose(
        methods.gradient(oracle.loss, logp),
        -oracle.weight * oracle.credit * ratio * open_side,
        atol=1e-8,
    )


def test_opo_with_equal_lengths_is_the_group_mean():
    batch = outcomes([1, 2, 6, 3], [0, 0, 0, 1])
    outcome = pieces.outcome_return(batch)
    np.testing.assert_allclose(
        pieces.length_weighted_baseline(batch, outcome),
        pieces.group_mean_baseline(batch, outcome),
        atol=1e-12,
    )


def test_ppo_at_one_step_has_the_gradient_of_a2c():
    batch = random_batch(14)
    ppo, from_ppo = on_policy_gradient(methods.ppo, batch, beta=0.0, lam=0.9, whiten=False)
    a2c, from_a2c = on_policy_gradient(methods.a2c, batch, lam=0.9)
    np.testing.assert_array_equal(ppo.credit, a2c.credit)
    np.testing.assert_allclose(from_ppo, from_a2c, atol=1e-8)


def test_critic_and_entropy_terms_have_their_own_gradients():
    batch = random_batch(15)
    oracle = methods.ppo(batch, value_coefficient=0.5, entropy_coefficient=0.01)
    value = batch.value + 0.05  # inside the clip, so the plain square
    kw = {"value": value, "entropy": -batch.logp_old}
    target = np.where(batch.scored[:, None], value - oracle.returns, 0.0)
    np.testing.assert_allclose(
        methods.gradient(oracle.loss, batch.logp_old, wrt="entropy", **kw),
        -0.01 * oracle.weight,
        atol=1e-8,
    )
    np.testing.assert_allclose(
        methods.gradient(oracle.loss, batch.logp_old, wrt="value", **kw),
        0.5 * oracle.weight * target,
        atol=1e-8,
    )


def test_reinforce_with_agreeing_sampler_has_weight_one():
    batch = random_batch(16)
    logp = random_logp(batch, seed=17)
    agree = Batch(**{**vars(batch), "logp_sampler": logp})
    weighted, plain = methods.reinforce(agree, importance_cap=2.0), methods.reinforce(agree)
    np.testing.assert_allclose(weighted.loss(logp), plain.loss(logp), rtol=1e-12)
    np.testing.assert_allclose(  # the weight is held: its own change adds nothing
        methods.gradient(weighted.loss, logp), methods.gradient(plain.loss, logp), atol=1e-8
    )


def test_rloo_in_ratio_form_starts_with_the_gradient_of_the_paper_form():
    # The product ratio hands every token of a row the row's whole weight, L_i times the share.
    batch = random_batch(19)
    _, paper = on_policy_gradient(methods.rloo, batch)
    _, ratio = on_policy_gradient(methods.rloo, batch, clip=(0.2, 0.2))
    np.testing.assert_allclose(ratio, paper, atol=1e-8)


def test_rloo_credit_and_loss_by_hand():
    batch = make([".xx", ".x."], [[0, 0, 1], [0, 0, 0]], [0, 0], logp_old=[[0, 1, 2], [0, 3, 0]])
    oracle = methods.rloo(batch, beta=0.1)  # returns 1 - 0.3 and 0 - 0.3
    np.testing.assert_allclose(oracle.credit, [[0, 1, 1], [0, -1, 0]], atol=1e-12)
    logp = np.array([[0, -1, -2], [0, -5, 0]], float)
    assert oracle.loss(logp) == pytest.approx(-(1 * -3 + -1 * -5) / 2)
    ratio = methods.rloo(batch, beta=0.1, clip=(0.2, 0.2)).loss(batch.logp_old + 0.05)
    assert ratio == pytest.approx(-(math.exp(0.1) - math.exp(0.05)) / 2)


def test_grpo_loss_by_hand():
    batch = make([".xx", ".x."], [[0, 0, 1], [0, 0, 0]], [0, 0])
    oracle = methods.grpo(batch, eps=0.0)  # credit +-sqrt(1/2)
    up = math.log(1.5)
    logp = np.array([[0, up, 0], [0, up, 0]])
    penalty = 0.04 * (1 / 1.5 - 1 + up)
    first = ((1.2 + 1.0) * math.sqrt(0.5) - penalty) / 2
    second = -1.5 * math.sqrt(0.5) - penalty
    assert oracle.loss(logp) == pytest.approx(-(first + second) / 2)
    capped = methods.grpo(batch, eps=0.0, beta=0.0, ratio_cap=1.3).loss(logp)
    assert capped == pytest.approx(-(2.2 / 2 - 1.3) * math.sqrt(0.5) / 2)


def test_dapo_drops_unanimous_groups_from_the_denominator():
    batch = outcomes([1, 0, 1, 1, 1], [0, 0, 1, 1, 2])
    oracle = methods.dapo(batch)
    assert oracle.weight.sum(axis=1).tolist() == [0.5, 0.5, 0, 0, 0]
    graded = methods.dapo(batch, accuracy=np.array([0.0, 0, 1, 0, 1]))
    assert graded.weight.sum(axis=1).tolist() == [0, 0, 0.5, 0.5, 0]


def test_dapo_shapes_the_outcome_but_filters_on_accuracy():
    # Lengths 1 and 3 of a limit of 4 with cache 2: penalties 0 and -1/2 make a tie of (0, 1/2).
    batch = make([".x..", ".xxx"], [[0, 0, 0, 0], [0, 0, 0, 0.5]], [0, 0])
    shaped = methods.dapo(batch, overlong=(4.0, 2.0))
    assert not shaped.credit.any()
    np.testing.assert_allclose(shaped.weight.sum(axis=1), [1 / 4, 3 / 4])
    longer = methods.dapo(batch, overlong=(3.0, 2.0), eps=0.0)  # penalties 0 and -1
    np.testing.assert_allclose(longer.credit[:, 1], [math.sqrt(0.5), -math.sqrt(0.5)])


def test_dapo_masks_truncated_rows_after_grouping():
    batch = outcomes([1, 0, 0.5], [0, 0, 0], truncated=[True, False, False])
    whole, masked = methods.dapo(batch), methods.dapo(batch, drop_truncated=True)
    np.testing.assert_allclose(masked.weight.sum(axis=1), [0, 0.5, 0.5])
    np.testing.assert_allclose(masked.credit[1:], whole.credit[1:])


def test_reinforce_to_go_credit_by_hand():
    batch = make([".xx"], [[0, 1, 2]], [0])
    assert methods.reinforce(batch).credit.tolist() == [[0, 3, 3]]
    assert methods.reinforce(batch, gamma=0.5).credit.tolist() == [[0, 2, 2]]


def test_steps_split_the_loss_without_changing_credit():
    batch = random_batch(18)
    step_of = np.arange(len(batch.group)) % 2
    split = methods.grpo(batch, step_of=step_of)
    np.testing.assert_array_equal(split.credit, methods.grpo(batch).credit)
    for step in (0, 1):
        assert split.weight[step_of == step].sum() == pytest.approx(1.0)


def test_kl_in_reward_reaches_the_credit_of_each_method_that_has_it():
    # One unit of k1 on each action: 0.5 each at beta 0.5, a future sum of -1 and -0.5.
    batch = make([".xx"], [[0, 0, 0]], [0], logp_old=[[0, 1, 1]], greedy_return=[0.25])
    np.testing.assert_allclose(methods.remax(batch, beta=0.5).credit, [[0, -1.25, -0.75]])
    ppo = methods.ppo(batch, beta=0.5, lam=1.0, whiten=False)
    np.testing.assert_allclose(ppo.credit, [[0, -1, -0.5]])
    np.testing.assert_allclose(ppo.returns, ppo.credit)
    whitened = math.sqrt(0.5)  # -1 and -0.5 with variance 1/8
    for oracle in (
        methods.reinforce_pp(batch, beta=0.5),
        methods.ppo(batch, beta=0.5, lam=1.0),
    ):
        np.testing.assert_allclose(oracle.credit, [[0, -whitened, whitened]], rtol=1e-6)


def test_a2c_loss_by_hand():
    batch = make([".xx"], [[0, 0, 2]], [0], value=[[0, 1, 3]])
    oracle = methods.a2c(batch)  # returns 2 and 2, advantages 1 and -1
    loss = oracle.loss(
        np.array([[0.0, -3, -1]]), value=np.array([[9.0, 4, 2]]), entropy=np.array([[9.0, 1, 3]])
    )
    policy, critic, entropy = (3 - 1) / 2, (0.5 * 4 + 0) / 2, (1 + 3) / 2
    assert loss == pytest.approx(policy + 0.5 * critic - 0.01 * entropy)


def test_remax_and_dr_grpo_losses_by_hand():
    batch = make([".xx", ".x."], [[0, 0, 1], [0, 0, 0]], [0, 0], greedy_return=[0.25, 0.25])
    logp = np.array([[0, -1, -2], [0, -4, 0]], float)
    assert methods.remax(batch).loss(logp) == pytest.approx(-(0.75 * -3 - 0.25 * -4) / 2)
    up = np.full((2, 3), math.log(1.5))
    dr_grpo = methods.dr_grpo(batch, length=10.0).loss(up)
    assert dr_grpo == pytest.approx(-(2 * 1.2 * 0.5 - 1.5 * 0.5) / 10 / 2)
