"""Which oracle each method is compared with, with what settings. Several rows to a key are fine."""

import dataclasses
import functools
import math
import zlib

import jax
import numpy as np
from oracles import (
    agreement,
    critics,
    distillation,
    grpo_family,
    methods,
    mismatch,
    preference,
    regression,
    reinforce_family,
    trackers,
    trees,
    trust_regions,
    turns,
)

from polopt import algorithms, chain
from polopt.divergence import k2
from polopt.modifiers import with_masked_is, with_offpolicy_mask, with_truncated_is
from polopt.numerics import uniform_by_identity
from polopt.reward import (
    analytic_pass_at_k,
    batch_whiten,
    best_minus_second,
    beta_normalise,
    bi_level_gae,
    by_size,
    drop_truncated,
    gae,
    group_std_scale,
    keep_top_spread,
    length_penalty,
    log_mean_exp_baseline,
    max_at_k,
    multi_level_group_mean,
    objective_weights,
    optimal_token_baseline,
    outcome_return,
    per_objective_group_norm,
    shared_prefix_mean,
    sibling_spread,
    step_group_advantage,
    tree_backup,
    turn_gae,
)
from polopt.testing.probe import SEED
from polopt.trajectory import (
    clip,
    covariance_clip,
    detach_weight,
    dual_clip,
    exponential_weight,
    kl_penalty,
    per_sequence,
    ring_mask,
    sampler_likelihood,
    squared_regression,
    two_side_mask,
    value_loss,
)

partial = functools.partial
ROWS, WIDTH = 25, 10  # of all batches


def bootstrapped(alg, gamma=1.0, lam=0.95):
    """The oracles know the value of a truncated row's last state."""
    return alg.replace(gae=gae(gamma, lam, bootstrap="bootstrap_value"))


def unbiased_grpo(batch, **kw):
    """GRPO with the oracle's ratio-weighted k3 in place of its own penalty."""
    grpo = methods.grpo(batch, beta=0.0, **kw)

    def loss(logp, value=None, entropy=None, *, detached_logp=None):
        def penalty(n, t):
            return mismatch.unbiased_kl(logp[n, t], batch.logp_old[n, t], batch.logp_ref[n, t])

        return grpo.loss(logp) + 0.04 * methods._weighted_sum(grpo.weight, penalty)

    return dataclasses.replace(grpo, loss=loss)


@functools.cache
def uniforms() -> np.ndarray:
    """What the piece draws for rows 0, 1, ... of a batch: addressed by row id and position."""
    key = jax.random.fold_in(jax.random.key(SEED), zlib.crc32(b"trajectory/covariance_clip"))
    with jax.enable_x64(True):
        return np.asarray(uniform_by_identity(key, np.arange(ROWS), WIDTH))


def drawn(oracle):
    """The oracle with the uniforms that the piece draws."""
    return lambda batch, **kw: oracle(batch, uniforms()[: len(batch.group)], **kw)


A = algorithms
# The oracle's credit is another way to write it down: only losses and gradients are compared.
LOSS_ONLY = {"dro", "gkd", "sdpo", "gold"}

PAIRS = {
    "reinforce": (A.reinforce(), methods.reinforce),
    "a2c": (bootstrapped(A.a2c(), 0.9, 0.8), partial(methods.a2c, gamma=0.9, lam=0.8)),
    "ppo": (
        bootstrapped(A.ppo(kl=0.1)),
        partial(methods.ppo, beta=0.1, value_coefficient=1.0),
    ),
    "ppo, dual clip, critic free to move": (
        bootstrapped(A.ppo(kl=0.0), 0.9, 0.5).replace(
            clip=chain(clip(0.1, 0.3), dual_clip(1.4)), value_loss=value_loss(0.5, None)
        ),
        partial(
            methods.ppo,
            beta=0.0,
            gamma=0.9,
            lam=0.5,
            clip=(0.1, 0.3),
            dual_clip=1.4,
            value_clip=None,
            value_coefficient=0.5,
        ),
    ),
    "rloo": (A.rloo(kl=0.05), partial(methods.rloo, beta=0.05)),
    "remax": (A.remax(kl=0.1), partial(methods.remax, beta=0.1)),
    "reinforce_pp": (A.reinforce_pp(kl=0.1), partial(methods.reinforce_pp, beta=0.1)),
    "grpo": (A.grpo(kl=0.04), partial(methods.grpo, beta=0.04)),
    "dr_grpo": (A.dr_grpo(max_length=30), partial(methods.dr_grpo, length=30)),
    "dapo": (A.dapo(max_length=6, cache=4), partial(methods.dapo, overlong=(6, 4))),
    "dapo, truncated rows dropped": (
        A.dapo(max_length=6, cache=4).replace(
            reward=chain(A.dapo(max_length=6, cache=4).reward, drop_truncated())
        ),
        partial(methods.dapo, overlong=(6, 4), drop_truncated=True),
    ),
    "gspo": (A.gspo(), methods.gspo),
    "cispo": (A.cispo(high=0.2), partial(methods.cispo, low=math.inf, high=0.2)),
    "cispo, bounded below": (
        A.cispo().replace(detach_weight=detach_weight(low=0.1, high=0.2)),
        partial(methods.cispo, low=0.1, high=0.2),
    ),
    "gspo_token": (A.gspo_token(), grpo_family.gspo_token),
    "gmpo": (A.gmpo(), grpo_family.gmpo),
    "luspo": (A.luspo(), grpo_family.luspo),
    "sapo": (A.sapo(), grpo_family.sapo),
    "vespo": (A.vespo(), grpo_family.vespo),
    "two_sided": (A.two_sided(), grpo_family.two_sided),
    "aspo": (A.aspo(), trust_regions.aspo),
    "bapo": (A.bapo(), trust_regions.bapo),
    "dppo_tv": (A.dppo_tv(max_length=30), partial(trust_regions.dppo_tv, length=30)),
    "dppo_kl": (A.dppo_kl(max_length=30), partial(trust_regions.dppo_kl, length=30)),
    "clip_cov": (A.clip_cov(), drawn(trust_regions.clip_cov)),
    "clip_cov, a third of the tokens": (
        A.clip_cov().replace(covariance_clip=covariance_clip(0.3, 0.01, 0.5)),
        drawn(partial(trust_regions.clip_cov, share=0.3, band=(0.01, 0.5))),
    ),
    "kl_cov": (A.kl_cov(), trust_regions.kl_cov),
    "entropy_top_quantile": (
        A.entropy_top_quantile(max_length=1e6, cache=1),
        trust_regions.entropy_top_quantile,
    ),
    "adaptive_entropy": (A.adaptive_entropy(), trust_regions.adaptive_entropy),
    "reinforce_pp_baseline": (
        A.reinforce_pp_baseline(kl=0.1),
        partial(reinforce_family.reinforce_pp_baseline, beta=0.1),
    ),
    "opo": (A.opo(), reinforce_family.opo),
    "otb": (A.otb(), reinforce_family.otb),
    "otb, corrected, with the baseline to the end": (
        A.otb().replace(optimal_token_baseline=optimal_token_baseline(1.1, zero_tail=False)),
        partial(reinforce_family.otb, importance_cap=1.1, zero_tail=False),
    ),
    "gpg": (A.gpg(), reinforce_family.gpg),
    "lite_ppo": (A.lite_ppo(), reinforce_family.lite_ppo),
    "topr": (A.topr(), reinforce_family.topr),
    "topr, with a baseline": (A.topr(baseline=0.4), partial(reinforce_family.topr, baseline=0.4)),
    "asymre": (A.asymre(), reinforce_family.asymre),
    "rec": (A.rec(), reinforce_family.rec),
    "rec, two sides, weighed by the ratio, near the sampler": (
        A.rec(detach_weight(), two_side_mask(), kl_penalty(k2, 0.4, "logp_old")),
        partial(
            reinforce_family.rec,
            clip_mode="two_side",
            weight_mode="importance",
            regulariser="k2",
            regulariser_coefficient=0.2,
        ),
    ),
    "rec, ring, weighed by credit, imitating": (
        A.rec(exponential_weight(0.5), ring_mask(0.1, 0.1, 0.2, 0.3), sampler_likelihood(0.2)),
        partial(
            reinforce_family.rec,
            clip_mode="ring",
            weight_mode="advantage",
            temperature=0.5,
            clip=(0.1, 0.1),
            outer=(0.2, 0.3),
            regulariser="forward_kl",
            regulariser_coefficient=0.2,
        ),
    ),
    "vc_ppo": (
        A.vc_ppo().replace(gae=gae(0.9, 0.7, 0.95, bootstrap="bootstrap_value")),
        partial(critics.vc_ppo, gamma=0.9, policy_lam=0.7, critic_lam=0.95, value_coefficient=1.0),
    ),
    "vapo": (
        A.vapo().replace(gae=gae(1.0, 0.95, 1.0, 0.5, "bootstrap_value")),
        partial(critics.vapo, alpha=0.5, value_coefficient=1.0),
    ),
    "bnpo": (
        A.bnpo().replace(beta_normalise=beta_normalise(-1, 2)),
        partial(grpo_family.bnpo, low=-1, high=2),
    ),
    "gdpo": (A.gdpo(), grpo_family.gdpo),
    "gdpo, weighed, over tokens": (
        A.gdpo().replace(
            per_objective_group_norm=per_objective_group_norm(
                objective_weights({"main": 0.7, "style": 0.2})
            ),
            batch_whiten_sequences=batch_whiten(),
        ),
        partial(grpo_family.gdpo, weights={"main": 0.7, "style": 0.2}, over_tokens=True),
    ),
    "passk_grpo": (
        A.passk_grpo(credit=analytic_pass_at_k(k=3)),
        partial(grpo_family.passk_grpo, k=3),
    ),
    "passk_grpo, of two": (
        A.passk_grpo(credit=analytic_pass_at_k(k=2)),
        partial(grpo_family.passk_grpo, k=2),
    ),
    "passk_grpo, best minus second": (
        A.passk_grpo(credit=best_minus_second(scaled=True)),
        partial(grpo_family.passk_grpo, estimator="best_minus_second", scale=True),
    ),
    "passk_grpo, max at k": (
        A.passk_grpo(credit=max_at_k(k=3)),
        partial(grpo_family.passk_grpo, estimator="max_at_k", k=3),
    ),
    "nsr": (A.nsr(), grpo_family.nsr),
    "psr": (A.psr(), grpo_family.psr),
    "w_reinforce": (A.w_reinforce(), grpo_family.w_reinforce),
    "dcpo": (A.dcpo(), trust_regions.dcpo),
    "tis": (A.tis(), mismatch.tis),
    "tis, rows": (
        with_truncated_is(A.grpo(), 1.2, level=per_sequence),
        partial(mismatch.tis, cap=1.2, level="sequence"),
    ),
    "mis": (A.mis(), mismatch.mis),
    "mis, tokens": (
        with_masked_is(A.grpo(), 0.9, 1.1),
        partial(mismatch.mis, low=0.9, high=1.1, level="token"),
    ),
    "icepop": (A.icepop(), mismatch.icepop),
    "opsm": (A.opsm(), mismatch.opsm),
    "opsm, near": (with_offpolicy_mask(A.grpo(), 0.01), partial(mismatch.opsm, delta=0.01)),
    "decoupled_ppo": (
        bootstrapped(A.decoupled_ppo()),
        partial(mismatch.decoupled_ppo, beta=0.02, value_coefficient=1.0, cap=5.0),
    ),
    "unbiased_kl": (A.unbiased_kl(), unbiased_grpo),
    "dro": (A.dro(), regression.dro),
    "rebel": (A.rebel(eta=0.5), partial(regression.rebel, eta=0.5)),
    "gvpo": (A.gvpo(), regression.gvpo),
    "kimi_pmd": (A.kimi_pmd(), regression.kimi_pmd),
    "kimi_pmd, the others' partition, length in the reward": (
        A.kimi_pmd(tau=0.3).replace(
            reward=chain(outcome_return(), length_penalty(0.2), log_mean_exp_baseline(0.3)),
            squared_regression=squared_regression(0.3, 0.5, per_beta=True, per_token=True),
        ),
        partial(
            regression.kimi_pmd, tau=0.3, baseline="partition", length_penalty=0.2, per_token=True
        ),
    ),
    "a_star_po": (A.a_star_po(beta=0.5), partial(regression.a_star_po, beta2=0.5)),
    "flowrl": (A.flowrl(), regression.flowrl),
    "dpo": (A.dpo(), preference.dpo),
    "ipo": (A.ipo(), preference.ipo),
    "online_dpo": (A.online_dpo(beta=0.4), partial(preference.online_dpo, beta=0.4)),
    "gkd": (A.gkd(), distillation.gkd),
    "minillm": (A.minillm(), distillation.minillm),
    "opd": (A.opd(), distillation.opd),
    "iw_opd": (A.iw_opd(), distillation.iw_opd),
    "sdpo": (A.sdpo(), distillation.sdpo),
    "gold": (A.gold(), distillation.gold),
    "grpo_opd": (A.grpo_opd(coefficient=0.4), partial(distillation.grpo_opd, coefficient=0.4)),
    "grpo_opd, in the reward": (
        A.grpo_opd(coefficient=0.4, level="reward"),
        partial(distillation.grpo_opd, coefficient=0.4, at="reward"),
    ),
    "grpo_opd, in the loss": (
        A.grpo_opd(coefficient=0.4, level="loss"),
        partial(distillation.grpo_opd, coefficient=0.4, at="loss"),
    ),
    "spo_single_stream": (
        A.spo_single_stream(),
        partial(trackers.spo_single_stream, tracker=trackers.initial_tracker([[]] * ROWS)),
    ),
    "prime": (A.prime(), trackers.prime),
    "ttrl": (A.ttrl(), agreement.ttrl),
    "empo": (A.empo(), agreement.empo),
    "treerpo": (
        A.treerpo().replace(tree_backup=tree_backup(1e-6, sibling_spread, ddof=1)),
        partial(trees.treerpo, scale="std"),
    ),
    "treepo": (A.treepo(), trees.treepo),
    "treepo, by size": (
        A.treepo().replace(multi_level_group_mean=multi_level_group_mean(by_size, skip_equal=True)),
        partial(trees.treepo, weighting="size", drop_flat=True),
    ),
    "arpo": (A.arpo(), trees.arpo),
    "arpo, hard": (
        A.arpo().replace(group_std_scale=chain(group_std_scale(), shared_prefix_mean())),
        partial(trees.arpo, attribution="hard"),
    ),
    "gigpo": (A.gigpo(), turns.gigpo),
    "gigpo, means only": (
        A.gigpo().replace(
            group_std_scale=chain(), step_group_advantage=step_group_advantage(0.9, None)
        ),
        partial(turns.gigpo, normalise=False, gamma=0.9),
    ),
    "mt_grpo": (A.mt_grpo(), turns.mt_grpo),
    "turn_ppo": (
        A.turn_ppo().replace(turn_gae=turn_gae(0.99, 0.9, "bootstrap_value")),
        partial(turns.turn_ppo, value_coefficient=1.0),
    ),
    "bi_level_gae": (
        A.bi_level_gae().replace(bi_level_gae=bi_level_gae(0.95, 0.8, 0.9, 0.8, "bootstrap_value")),
        partial(turns.bi_level_gae, turn_gamma=0.95, gamma=0.9, lam=0.8, value_coefficient=1.0),
    ),
    "starpo": (
        A.starpo(),
        partial(turns.starpo, critic=False, clip=(0.2, 0.28), beta=0.0),
    ),
    "starpo, filtered": (
        A.starpo().replace(reward=chain(A.starpo().reward, keep_top_spread(0.5))),
        partial(turns.starpo_s, critic=False, fraction=0.5),
    ),
}
