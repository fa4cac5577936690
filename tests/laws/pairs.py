"""Which oracle each method is compared with, with what settings. Several rows to a key are fine."""

import functools
import math
import zlib

import jax
import numpy as np
from oracles import critics, grpo_family, methods, reinforce_family, trust_regions

from polopt import algorithms, chain
from polopt.divergence import k2
from polopt.numerics import uniform_by_identity
from polopt.reward import (
    analytic_pass_at_k,
    batch_whiten,
    best_minus_second,
    beta_normalise,
    drop_truncated,
    gae,
    max_at_k,
    objective_weights,
    optimal_token_baseline,
    per_objective_group_norm,
)
from polopt.testing.probe import SEED
from polopt.trajectory import (
    clip,
    covariance_clip,
    detach_weight,
    dual_clip,
    exponential_weight,
    kl_penalty,
    ring_mask,
    sampler_likelihood,
    two_side_mask,
    value_loss,
)

partial = functools.partial
ROWS, WIDTH = 25, 10  # of all batches


def bootstrapped(alg, gamma=1.0, lam=0.95):
    """The oracles know the value of a truncated row's last state."""
    return alg.replace(gae=gae(gamma, lam, bootstrap="bootstrap_value"))


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
}
