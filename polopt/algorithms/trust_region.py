"""Methods that change how far, and which, tokens may move."""

from polopt.aggregate import constant_length, sequence_mean, sequence_mean_sum, token_mean
from polopt.algorithm import Algorithm
from polopt.algorithms.grpo import GROUP_NORM, dapo, grpo
from polopt.divergence import k3
from polopt.reward import group_mean_baseline, outcome_return, smooth_standardise
from polopt.trajectory import (
    Sampling,
    Update,
    adaptive_clip,
    adaptive_entropy_bonus,
    asymmetric_flip,
    binary_kl,
    clip,
    covariance_clip,
    covariance_penalty,
    detach_weight,
    divergence_mask,
    entropy_quantile_mask,
    kl_penalty,
    probability_clip,
    ratio_cap,
    soft_gate,
    token_ratio,
    total_variation,
    unclipped,
)
from polopt.transform import chain

STALE = Update(minibatches=4)


def cispo(*, high: float = 4.0) -> Algorithm:
    """CISPO (2506.13585): clip the detached weight, so that no token loses its gradient.

    The paper bounds the ratio from above only and does not print the bound; 5 is ScaleRL's
    (2510.13786).
    """
    return Algorithm(
        name="cispo",
        reward=chain(outcome_return(), GROUP_NORM),
        trajectory=chain(token_ratio(), detach_weight(low=None, high=high)),
        aggregate=token_mean(),
        sampling=Sampling(group_size=8),
        update=Update(minibatches=16),
    )


def sapo() -> Algorithm:
    """SAPO (2511.20347): a smooth gate on the ratio instead of a clip's edge."""
    return Algorithm(
        name="sapo",
        reward=chain(outcome_return(), GROUP_NORM),
        trajectory=chain(token_ratio(), soft_gate(1.0, 1.05)),
        aggregate=sequence_mean(),
        sampling=Sampling(group_size=8),
        update=STALE,
    )


def aspo() -> Algorithm:
    """ASPO (2510.06062): reciprocal ratios for positive credit, dual-clipped weights."""
    return Algorithm(
        name="aspo",
        reward=chain(outcome_return(), GROUP_NORM),
        trajectory=chain(token_ratio(), asymmetric_flip(0.2, 0.2, 3.0), kl_penalty(k3, 0.001)),
        aggregate=token_mean(),
        sampling=Sampling(group_size=8),
        update=STALE,
    )


def bapo() -> Algorithm:
    """BAPO (2510.18927): clip bounds that adapt until positive credit holds its share."""
    return Algorithm(
        name="bapo",
        reward=chain(outcome_return(), GROUP_NORM),
        trajectory=chain(token_ratio(), adaptive_clip()),
        aggregate=token_mean(),
        sampling=Sampling(group_size=8),
        update=STALE,
    )


def dcpo() -> Algorithm:
    """DCPO (2509.02333): bounds that depend on probability, credit that remembers each prompt."""
    return Algorithm(
        name="dcpo",
        reward=chain(outcome_return(), smooth_standardise()),
        trajectory=chain(token_ratio(), probability_clip(0.16, 0.2)),
        aggregate=sequence_mean_sum(),
        sampling=Sampling(group_size=16),
        update=STALE,
    )


def dppo_tv(*, max_length: float = 16384) -> Algorithm:
    """DPPO (2602.04879), total variation: stop tokens whose probability has moved far."""
    return Algorithm(
        name="dppo_tv",
        reward=chain(outcome_return(), group_mean_baseline()),
        trajectory=chain(
            token_ratio("logp_behaviour"),
            detach_weight(high=19.0),
            divergence_mask(total_variation, 0.15, 0.15, "logp_behaviour"),
        ),
        aggregate=constant_length(max_length),
        sampling=Sampling(group_size=16),
        update=STALE,
    )


def dppo_kl(*, max_length: float = 16384) -> Algorithm:
    """DPPO (2602.04879), binary KL: the same trust region by another distance."""
    made = dppo_tv(max_length=max_length)
    mask = divergence_mask(binary_kl, 0.05, 0.05, "logp_behaviour")
    return made.replace(divergence_mask=mask, name="dppo_kl")


def clip_cov() -> Algorithm:
    """Clip-Cov (2505.22617): leave out a few tokens whose credit and likelihood rise together."""
    return Algorithm(
        name="clip_cov",
        reward=chain(outcome_return(), GROUP_NORM),
        trajectory=chain(token_ratio(), clip(1.0, 1.0), covariance_clip(2e-4, 1.0, 5.0)),
        aggregate=token_mean(),
        sampling=Sampling(group_size=8),
        update=STALE,
    )


def kl_cov() -> Algorithm:
    """KL-Cov (2505.22617): hold those tokens near the old policy instead."""
    made = clip_cov().replace(clip=unclipped(), covariance_clip=covariance_penalty(2e-4, 1.0))
    return made.replace(name="kl_cov")


def entropy_top_quantile(*, max_length: float = 20480, cache: float = 4096) -> Algorithm:
    """80/20 (2506.01939): DAPO on the fifth of the tokens where the policy hesitates most."""
    made = dapo(max_length=max_length, cache=cache)
    return made.replace(
        trajectory=chain(made.trajectory, entropy_quantile_mask(0.2)),
        name="entropy_top_quantile",
    )


def adaptive_entropy() -> Algorithm:
    """Skywork-OR1 (2505.22312): GRPO with an entropy bonus that a controller switches."""
    return Algorithm(
        name="adaptive_entropy",
        reward=chain(outcome_return(), GROUP_NORM),
        trajectory=chain(token_ratio(), clip(0.2, 0.2), adaptive_entropy_bonus()),
        aggregate=token_mean(),
        sampling=Sampling(group_size=16),
    )


def two_sided() -> Algorithm:
    """Two-sided GRPO (INTELLECT-2, 2505.07291): the ratio is capped before the clip."""
    capped = chain(token_ratio(), ratio_cap(4.0))
    return grpo(kl=0.001).replace(token_ratio=capped, update=STALE, name="two_sided")
