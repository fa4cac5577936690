"""The newer methods: shared laws, identities between them, and losses worked out by hand."""

import math
from functools import partial

import numpy as np
import pytest

from . import critics, grpo_family, methods, pieces, trust_regions
from . import reinforce_family as rf
from . import surrogate_pieces as sp
from .batch import Batch, random_batch, random_logp, reordered, widened
from .handmade import make, outcomes


def clip_cov(batch):
    uniform = np.mod(97.0 * batch.sum_prob_sq, 1.0)  # belongs to the token, not to its place
    return trust_regions.clip_cov(batch, uniform, share=0.1, band=(0.0, 9.0))


SMALL = {"n_groups": 5, "max_group": 3, "width": 6}
METHODS = {
    "reinforce_pp_baseline": rf.reinforce_pp_baseline,
    "opo": rf.opo,
    "otb": rf.otb,
    "otb_plain": partial(rf.otb, compacted=False, importance_cap=1.1),
    "gpg": rf.gpg,
    "lite_ppo": rf.lite_ppo,
    "topr": partial(rf.topr, baseline=0.3),
    "asymre": rf.asymre,
    "rec": rf.rec,
    "vc_ppo": critics.vc_ppo,
    "vapo": partial(critics.vapo, alpha=0.5),
    "bnpo": partial(grpo_family.bnpo, low=-1.0, high=2.0),
    "gspo_token": grpo_family.gspo_token,
    "gmpo": grpo_family.gmpo,
    "luspo": grpo_family.luspo,
    "sapo": grpo_family.sapo,
    "vespo": grpo_family.vespo,
    "gdpo": grpo_family.gdpo,
    "gdpo_tokens": partial(grpo_family.gdpo, over_tokens=True),
    "passk_best": partial(grpo_family.passk_grpo, estimator="best_minus_second"),
    "passk_analytic": partial(grpo_family.passk_grpo, k=2),
    "passk_max": partial(grpo_family.passk_grpo, estimator="max_at_k", k=2),
    "nsr": grpo_family.nsr,
    "psr": grpo_family.psr,
    "w_reinforce": grpo_family.w_reinforce,
    "two_sided": grpo_family.two_sided,
    "aspo": trust_regions.aspo,
    "bapo": trust_regions.bapo,
    "bapo_script": partial(trust_regions.bapo, **trust_regions.BAPO_SCRIPT),
    "dcpo": trust_regions.dcpo,
    "dppo_tv": trust_regions.dppo_tv,
    "dppo_kl": trust_regions.dppo_kl,
    "clip_cov": clip_cov,
    "kl_cov": partial(trust_regions.kl_cov, share=0.1),
    "entropy_top_quantile": trust_regions.entropy_top_quantile,
    "adaptive_entropy": partial(trust_regions.adaptive_entropy, coefficient=0.1, measured=0.0),
}
# On-policy the ratio of these is 1, so that every gradient must be that of REINFORCE.
PENALTY_FREE = {
    **METHODS,
    "reinforce_pp_baseline": partial(rf.reinforce_pp_baseline, beta=0.0),
    "topr": lambda batch: rf.topr(batch, baseline=0.3, behaviour=batch.logp_old),
    "vapo": partial(critics.vapo, alpha=0.5, positive_nll=0.0),
    "two_sided": partial(grpo_family.two_sided, beta=0.0),
    "aspo": partial(trust_regions.aspo, beta=0.0),
    "dppo_tv": lambda batch: trust_regions.dppo_tv(batch, anchor=batch.logp_old, length=9.0),
    "dppo_kl": lambda batch: trust_regions.dppo_kl(batch, anchor=batch.logp_old, length=9.0),
    "kl_cov": partial(trust_regions.kl_cov, coefficient=0.0),
    "entropy_top_quantile": partial(trust_regions.entropy_top_quantile, share=1.0),
}
del PENALTY_FREE["clip_cov"]


@pytest.mark.parametrize("key", sorted(PENALTY_FREE))
def test_on_policy_gradient_is_reinforce(key):
    batch = random_batch(5, **SMALL)
    oracle = PENALTY_FREE[key](batch)
    got = methods.gradient(oracle.loss, batch.logp_old, entropy=-batch.logp_old)
    expected = oracle.weight * oracle.credit * np.ones(batch.mask.shape)
    np.testing.assert_allclose(got, -expected, atol=1e-7)
    assert np.abs(oracle.weight * oracle.credit).max() > 1e-6


@pytest.mark.parametrize("key", sorted(METHODS))
def test_what_is_off_the_mask_changes_nothing(key):
    batch = random_batch(4, **SMALL)
    poison = {
        name: np.where(batch.mask, getattr(batch, name), np.nan)
        for name in ("logp_old", "logp_ref", "logp_sampler", "value", "sum_prob_sq")
    }
    logp = random_logp(batch, seed=5, scale=0.2)
    clean, dirty = METHODS[key](batch), METHODS[key](Batch(**{**vars(batch), **poison}))
    np.testing.assert_array_equal(clean.credit, dirty.credit)
    spoiled = np.where(batch.mask, logp, np.nan)
    got = dirty.loss(spoiled, value=poison["value"], entropy=-spoiled)
    assert got == clean.loss(logp, value=batch.value, entropy=-logp)
    assert not clean.credit[~batch.mask].any()
    assert not clean.credit[~batch.scored].any()
    assert not clean.weight[~batch.mask].any()


@pytest.mark.parametrize("key", sorted(METHODS))
def test_row_order_and_padding_do_not_matter(key):
    batch = random_batch(6, **SMALL)
    logp = random_logp(batch, seed=7, scale=0.2)
    order = np.random.default_rng(0).permutation(len(batch.group))
    rows, shuffled = reordered(batch, order), logp[order]
    wide = np.pad(shuffled, [(0, 0), (0, 2)])
    whole = METHODS[key](batch).loss(logp, entropy=-logp)
    assert METHODS[key](rows).loss(shuffled, entropy=-shuffled) == pytest.approx(whole, rel=1e-9)
    got = METHODS[key](widened(rows)).loss(wide, entropy=-wide)
    assert got == pytest.approx(whole, rel=1e-9)


# ------------------------------------------------------------------ identities


def same_loss(first, second, batch, *, seed=1, scale=0.3):
    logp = random_logp(batch, seed=seed, scale=scale)
    np.testing.assert_allclose(
        methods.gradient(first.loss, logp), methods.gradient(second.loss, logp), atol=1e-7
    )


def test_luspo_on_equal_lengths_is_gspo_times_the_length():
    batch = make([".xx", ".xx"], [[0, 0, 1], [0, 0, 0]], [0, 0])
    logp = np.array([[0, 2e-3, 1e-3], [0, -1e-3, 3e-4]])
    luspo = grpo_family.luspo(batch, clip=(3e-4, 4e-4)).loss(logp)
    assert luspo == pytest.approx(2 * methods.gspo(batch).loss(logp), rel=1e-12)


def test_gmpo_without_a_clip_is_gspo_without_a_clip():
    batch, wide = random_batch(8, **SMALL), (math.inf, math.inf)
    same_loss(grpo_family.gmpo(batch, clip=wide), methods.gspo(batch, clip=wide), batch)


def test_gdpo_with_one_component_is_grpo_then_whitened():
    batch = random_batch(9)
    alone = Batch(**{**vars(batch), "parts": {"all": batch.reward}})
    grpo = pieces.group_normalised(batch, pieces.outcome_return(batch))
    expected = pieces.on_tokens(batch, pieces.whiten_sequences(batch, grpo))
    np.testing.assert_allclose(grpo_family.gdpo(alone).credit, expected, atol=1e-12)


def test_dppo_without_bounds_is_cispo_without_bounds():
    batch = random_batch(10, **SMALL)
    free = {"delta": (math.inf, math.inf), "cap": math.inf, "anchor": batch.logp_old}
    logp = random_logp(batch, seed=3)
    ratio = np.exp(np.where(batch.mask, logp - batch.logp_old, 0))
    for make_oracle in (trust_regions.dppo_tv, trust_regions.dppo_kl):
        oracle = make_oracle(batch, **free)
        got = methods.gradient(oracle.loss, logp)
        np.testing.assert_allclose(got, -oracle.weight * oracle.credit * ratio, atol=1e-8)


def test_rec_with_one_side_and_importance_weight_is_the_ppo_clip():
    batch = random_batch(11, **SMALL)
    oracle = rf.rec(batch, weight_mode="importance")
    clip = methods._clip_loss(batch, oracle.credit, oracle.weight, (0.2, 0.2))
    logp = random_logp(batch, seed=2)
    np.testing.assert_allclose(
        methods.gradient(oracle.loss, logp), methods.gradient(clip, logp), atol=1e-8
    )


def test_asymre_is_rec_with_a_log_likelihood_regulariser():
    batch = random_batch(12, **SMALL)
    batch = Batch(**{**vars(batch), "scored": batch.group >= 0})
    oracle = rf.rec(batch, clip_mode="none", regulariser="forward_kl", regulariser_coefficient=0.1)
    shifted = rf.asymre(batch).credit
    got = methods.gradient(oracle.loss, random_logp(batch, seed=4))
    np.testing.assert_allclose(got, -oracle.weight * shifted, atol=1e-8)


def test_nsr_and_psr_share_out_the_rows_of_w_reinforce():
    batch = random_batch(13)
    minus, plus = grpo_family.nsr(batch), grpo_family.psr(batch)
    both = grpo_family.w_reinforce(batch, positive=1.0)
    np.testing.assert_array_equal(both.credit, minus.credit + plus.credit)
    assert not (minus.weight * plus.weight).any()
    assert minus.weight.sum() == pytest.approx(1.0)
    assert plus.weight.sum() == pytest.approx(1.0)


def test_dcpo_meets_a_prompt_for_the_first_time_as_grpo_does():
    batch = random_batch(14)
    grpo = methods.grpo(batch, eps=1e-12).credit
    np.testing.assert_allclose(trust_regions.dcpo(batch).credit, grpo, atol=1e-9)


def test_bapo_with_no_target_is_a_plain_clip():
    batch = random_batch(15, **SMALL)
    oracle = trust_regions.bapo(batch, target=0.0)
    clip = methods._clip_loss(batch, oracle.credit, oracle.weight, (0.4, 0.2))
    logp = random_logp(batch, seed=5)
    assert oracle.loss(logp) == pytest.approx(clip(logp), rel=1e-12)


def test_vc_ppo_with_one_lambda_is_ppo():
    batch = random_batch(16)
    ours, ppo = critics.vc_ppo(batch, critic_lam=0.95), methods.ppo(batch, beta=0.0)
    np.testing.assert_array_equal(ours.credit, ppo.credit)
    np.testing.assert_array_equal(ours.returns, ppo.returns)
    logp = random_logp(batch, seed=6)
    assert ours.loss(logp, value=batch.value) == ppo.loss(logp, value=batch.value)


# ------------------------------------------------------------------ by hand


def test_reinforce_pp_baseline_whitens_over_tokens_and_adds_k2():
    batch = make([".xx", ".x."], [[0, 0, 1], [0, 0, 0]], [0, 0], logp_ref=np.full((2, 3), -0.2))
    oracle = rf.reinforce_pp_baseline(batch, beta=0.5, eps=0.0)
    up = 1 / math.sqrt(3)  # centred 1/2, 1/2, -1/2: mean 1/6, variance 1/3
    np.testing.assert_allclose(oracle.credit, [[0, up, up], [0, -2 * up, 0]], atol=1e-12)
    assert oracle.loss(np.zeros((2, 3))) == pytest.approx(0.5 * 0.02)


def test_gpg_opo_and_lite_ppo_credit_by_hand():
    batch = outcomes([1, 0, 1, 1], [0, 0, 1, 1])
    np.testing.assert_allclose(rf.gpg(batch).credit[:, 1], [1, -1, 0, 0])
    lite = rf.lite_ppo(batch, eps=0.0).credit[:, 1]  # deviation 1/2 over the batch
    np.testing.assert_allclose(lite, [1, -1, 0, 0])
    uneven = make([".x..", ".xxx"], [[0, 1, 0, 0], [0, 0, 0, 5]], [0, 0])
    opo = rf.opo(uneven)
    assert opo.loss(np.full((2, 4), -1.0)) == pytest.approx((-3 + 3 * 1) / 4)


def test_topr_loss_by_hand():
    batch = make([".xx", ".x."], [[0, 0, 1], [0, 0, -2]], [0, 0], logp_sampler=[[0, -1, -1]] * 2)
    batch = Batch(**{**vars(batch), "reward": np.array([[0, 0, 1.0], [0, -2.0, 0]])})
    logp = np.array([[0, -3, -2], [0, -1.5, 0]], float)
    assert rf.topr(batch).loss(logp) == pytest.approx(-(-5 + math.exp(-0.5) * -2 * -1.5) / 2)


def test_asymre_shifts_every_scored_row():
    batch = outcomes([1, 0, 1, 1, 3, 3], [0, 0, 1, 1, 2, 2], scored=[True] * 5 + [False])
    np.testing.assert_allclose(rf.asymre(batch).credit[:, 1], [0.6, -0.4, 0.1, 0.1, 0.1, 0])


def test_rec_weights_and_regularisers_by_hand():
    batch = outcomes([1, 0], [0, 0])
    logp = np.array([[0, 0.1], [0, -0.3]])
    base = {"clip_mode": "none", "temperature": 0.5}
    plain = (0.5 * 0.1 + 0.5 * 0.3) / 2
    assert rf.rec(batch, **base).loss(logp) == pytest.approx(-plain)
    tempered = (math.e * 0.05 + math.exp(-1) * 0.15) / 2
    assert rf.rec(batch, weight_mode="advantage", **base).loss(logp) == pytest.approx(-tempered)
    got = rf.rec(batch, regulariser="k2", regulariser_coefficient=2.0, **base).loss(logp)
    assert got == pytest.approx(-plain + 2 * (0.01 + 0.09) / 2)
    scaled = rf.rec(batch, normalise=True, **base).credit[:, 1]
    np.testing.assert_allclose(scaled, [1, -1], rtol=1e-5)


def test_vapo_imitates_correct_responses_over_their_own_tokens():
    batch = make([".xx", ".x."], [[0, 0, 1], [0, 0, 0]], [0, 0], value=np.zeros((2, 3)))
    logp = np.array([[0, -1, -2], [0, -7, 0]], float)
    without = critics.vapo(batch, positive_nll=0.0).loss(logp)
    assert critics.vapo(batch, positive_nll=0.1).loss(logp) == pytest.approx(without + 0.15)
    oracle = critics.vapo(batch, alpha=1.0, whiten=False)  # lambda 1/2 and 0
    np.testing.assert_allclose(oracle.credit, [[0, 0.5, 1], [0, 0, 0]])
    np.testing.assert_allclose(oracle.returns, [[0, 1, 1], [0, 0, 0]])
    nobody = critics.vapo(batch, correct=np.array([False, False])).loss(logp)
    assert nobody == pytest.approx(without)


def test_gmpo_sapo_and_vespo_losses_by_hand():
    batch = make([".xx", ".x."], [[0, 0, 1], [0, 0, 0]], [0, 0])
    a = math.sqrt(0.5)
    logp = np.array([[0, 0.6, -0.2], [0, -0.6, 0]])
    gmpo = grpo_family.gmpo(batch, eps=0.0).loss(logp)  # 0.4 - 0.2 and -0.4
    assert gmpo == pytest.approx(-a * (math.exp(0.1) - math.exp(-0.4)) / 2)
    up = np.array([[0, math.log(3), 0], [0, math.log(3), 0]])
    first = 4 * (1 / (1 + math.exp(-2)) + 0.5) / 2
    second = 4 / 1.05 / (1 + math.exp(-2.1))
    assert grpo_family.sapo(batch, eps=0.0).loss(up) == pytest.approx(-a * (first - second) / 2)
    w = math.log(3)  # both rows have W = 3
    positive, negative = 9 * math.exp(-6), 27 * math.exp(-4)
    vespo = grpo_family.vespo(batch, eps=0.0).loss(up)
    assert vespo == pytest.approx(-a * (positive * w - negative * w) / 3)


def test_two_sided_caps_the_ratio_of_negative_tokens():
    batch = outcomes([1, 0], [0, 0])
    logp = np.full((2, 2), math.log(6.0))
    got = grpo_family.two_sided(batch, beta=0.0, eps=0.0).loss(logp)
    assert got == pytest.approx(-math.sqrt(0.5) * (1.2 - 4.0) / 2)


def test_aspo_loss_by_hand():
    batch = outcomes([1, 0], [0, 0], logp_ref=np.full((2, 2), -0.1))
    logp = np.array([[0, math.log(0.4)], [0, math.log(1.5)]])
    a = math.sqrt(0.5)
    kw = {"eps": 0.0, "cap": 2.0}
    plain = trust_regions.aspo(batch, beta=0.0, **kw).loss(logp)  # 1 / 0.4 is over the cap
    assert plain == pytest.approx(-(2 * a * math.log(0.4) - 1.5 * a) / 2)
    k3 = [math.exp(-d) - 1 + d for d in (logp[:, 1] + 0.1)]
    assert trust_regions.aspo(batch, beta=0.5, **kw).loss(logp) == pytest.approx(
        plain + 0.25 * sum(k3)
    )


def test_bapo_searches_its_bounds_before_it_clips():
    # Shares of the positive token: 1.2/1.8, then 1.25, 1.3, 1.35 over that plus 0.6.
    batch = outcomes([1, 0], [0, 0])
    logp = np.array([[0, math.log(1.5)], [0, math.log(0.5)]])
    got = trust_regions.bapo(batch, target=0.69, eps=0.0).loss(logp)
    assert got == pytest.approx(-math.sqrt(0.5) * (1.35 - 0.6) / 2)


def test_dcpo_loss_by_hand():
    batch = outcomes([1, 0], [0, 0], logp_old=np.full((2, 2), math.log(0.01)))
    logp = batch.logp_old + np.array([[0, math.log(8)], [0, math.log(0.3)]])
    a = math.sqrt(0.5)
    assert trust_regions.dcpo(batch).loss(logp) == pytest.approx(-a * (5.0 - 0.5))


def test_dppo_loss_by_hand():
    batch = outcomes([1, 0], [0, 0], logp_sampler=np.full((2, 2), math.log(0.5)))
    logp = np.log(np.array([[0.5, 0.6], [0.5, 0.3]]))
    tv = trust_regions.dppo_tv(batch, length=10.0).loss(logp)  # the second token is blocked
    assert tv == pytest.approx(-1.2 * 0.5 * math.log(0.6) / 10 / 2)
    kl = trust_regions.dppo_kl(batch, length=10.0, cap=1.1, delta=(1.0, 1.0)).loss(logp)
    assert kl == pytest.approx(-(1.1 * 0.5 * math.log(0.6) - 0.6 * 0.5 * math.log(0.3)) / 20)


def test_covariance_methods_by_hand():
    # Credits a, a, -a (a = 1/sqrt 2) about a/3, log-probabilities 0.2, -0.1, -0.1 about 0: the
    # first token has 2a/3 * 0.2, the second -2a/3 * 0.1, the third 4a/3 * 0.1.
    batch = make([".xx", ".x."], [[0, 0, 1], [0, 0, 0]], [0, 0])
    logp = np.array([[0, 0.2, -0.1], [0, -0.1, 0]])
    a = math.sqrt(0.5)
    plain = a * (math.exp(0.2) + math.exp(-0.1) - math.exp(-0.1))
    wide = {"eps": 0.0, "band": (0.0, 5.0)}
    uniform = np.array([[0, 0.9, 0.0], [0, 0.1, 0]])
    dropped = trust_regions.clip_cov(batch, uniform, **wide).loss(logp)
    assert dropped == pytest.approx(-(plain + a * math.exp(-0.1)) / 3)
    dropped = trust_regions.clip_cov(batch, 1 - uniform, **wide).loss(logp)
    assert dropped == pytest.approx(-(plain - a * math.exp(0.2)) / 3)
    assert trust_regions.clip_cov(batch, uniform, eps=0.0).loss(logp) == pytest.approx(-plain / 3)
    # A clip at 1.2 blocks the first token already, so the third is taken whatever was drawn.
    tight = trust_regions.clip_cov(batch, 1 - uniform, clip=(0.2, 0.2), **wide).loss(logp)
    assert tight == pytest.approx(-a * (1.2 + math.exp(-0.1)) / 3)
    shifted = logp + np.array([[0, 0.1, 0.1], [0, 0, 0]])  # now 0.3, 0, -0.1: the last leads
    plain = a * (math.exp(0.3) + 1 - math.exp(-0.1))
    penalised = trust_regions.kl_cov(batch, coefficient=2.0, eps=0.0).loss(shifted)
    assert penalised == pytest.approx(-(plain - 2 * 0.1) / 3)


def test_entropy_quantile_keeps_the_upper_tokens():
    batch = make([".xx", ".x.", ".xx"], [[0, 0, 1], [0, 0, 0], [0, 0, 1]], [0, 0, 1])
    entropy = np.array([[9, 3, 1], [9, 2, 9], [9, 8, 8]], float)  # the last row is dropped
    logp = np.log(np.array([[1, 1.1, 1.2], [1, 1.3, 1], [1, 1, 1]]))
    oracle = trust_regions.entropy_top_quantile(batch, share=0.5)  # two of three, both at 2 or more
    a = oracle.credit[0, 1]
    assert oracle.loss(logp, entropy=entropy) == pytest.approx(-a * (1.1 - 1.3) / 2)
    whole = trust_regions.entropy_top_quantile(batch, share=0.5, own_denominator=False)
    assert whole.loss(logp, entropy=entropy) == pytest.approx(-a * (1.1 - 1.3) / 3)


def test_adaptive_entropy_is_applied_below_the_target_only():
    batch = outcomes([1, 0], [0, 0])
    logp, entropy = np.zeros((2, 2)), np.full((2, 2), 0.7)
    on = trust_regions.adaptive_entropy(batch, coefficient=0.1, measured=0.1)
    off = trust_regions.adaptive_entropy(batch, coefficient=0.1, measured=0.3)
    assert on.loss(logp, entropy=entropy) == pytest.approx(off.loss(logp) - 0.07)
    assert off.loss(logp, entropy=entropy) == off.loss(logp)
    assert sp.entropy_controller(0.1, 0.1) == pytest.approx(0.105)


def test_statistics_of_the_batch_are_taken_per_step():
    batch = random_batch(17, **SMALL)
    step_of = np.arange(len(batch.group)) % 2
    logp, entropy = random_logp(batch, seed=8), -batch.logp_old
    uniform = np.random.default_rng(0).random(batch.mask.shape)
    makers = {
        "bapo": partial(trust_regions.bapo, target=0.6),
        "clip_cov": partial(trust_regions.clip_cov, uniform=uniform, band=(0.0, 9.0)),
        "kl_cov": trust_regions.kl_cov,
        "entropy_top_quantile": trust_regions.entropy_top_quantile,
    }
    for name, make_oracle in makers.items():
        split = make_oracle(batch, step_of=step_of)
        moved = logp.copy()
        moved[step_of == 1] += 0.2 * np.sin(np.arange(logp.shape[1]))
        change = split.loss(moved, entropy=entropy) - split.loss(logp, entropy=entropy)
        again = logp.copy()
        again[step_of == 0] -= 0.2  # another step's tokens cannot alter that change
        both = np.where((step_of == 1)[:, None], moved, again)
        other = split.loss(both, entropy=entropy) - split.loss(again, entropy=entropy)
        assert other == pytest.approx(change, abs=1e-12), name
