"""Methods for data that the policy of now did not write: stale, filtered, or another engine's."""

from polopt.aggregate import sequence_sum_mean, token_mean
from polopt.algorithm import Algorithm
from polopt.algorithms.critics import ppo
from polopt.algorithms.grpo import grpo
from polopt.modifiers import (
    with_masked_is,
    with_offpolicy_mask,
    with_truncated_is,
    with_unbiased_kl,
)
from polopt.reward import constant_baseline, group_mean_baseline, outcome_return, shift_baseline
from polopt.trajectory import (
    Sampling,
    Update,
    one_side_mask,
    per_sequence,
    policy_gradient,
    product_ratio,
    tapered_weight,
    token_ratio,
)
from polopt.transform import Transform, chain

STALE = Update(minibatches=4)


def topr(*, baseline: float = 0.0) -> Algorithm:
    """TOPR (2503.14286): imitate the good, unlearn the bad by a ratio of at most one."""
    return Algorithm(
        name="topr",
        reward=chain(outcome_return(), constant_baseline(baseline)),
        trajectory=chain(product_ratio("logp_behaviour"), tapered_weight(0.0, 1.0)),
        aggregate=sequence_sum_mean(),
        sampling=Sampling(group_size=8),
        update=STALE,
    )


def asymre(*, shift: float = -0.1) -> Algorithm:
    """AsymRE (2506.20520): plain REINFORCE off-policy, with a baseline a little below the mean."""
    return Algorithm(
        name="asymre",
        reward=chain(outcome_return(), group_mean_baseline(), shift_baseline(shift)),
        trajectory=chain(policy_gradient()),
        aggregate=sequence_sum_mean(),
        sampling=Sampling(group_size=8),
        update=STALE,
    )


def rec(*links: Transform) -> Algorithm:
    """REC (2509.24203): group-relative REINFORCE with a mask; others by giving the links.

    `rec(detach_weight(), ring_mask())`, or `rec(policy_gradient(), kl_penalty(k2, 0.1))`.
    """
    return Algorithm(
        name="rec",
        reward=chain(outcome_return(), group_mean_baseline()),
        trajectory=chain(token_ratio(), *(links or (policy_gradient(), one_side_mask(0.2, 0.2)))),
        aggregate=token_mean(),
        sampling=Sampling(group_size=8),
        update=STALE,
    )


def tis() -> Algorithm:
    """TIS (Yao et al. 2025) on GRPO: token weights min(π_old/μ, 2)."""
    return with_truncated_is(grpo(), 2.0, name="tis")


def mis() -> Algorithm:
    """MIS (Liu et al. 2025) on GRPO: rows whose π_old/μ is beyond 2 have no weight."""
    return with_masked_is(grpo(), None, 2.0, level=per_sequence, name="mis")


def icepop() -> Algorithm:
    """IcePop (Ring-1T 2025; INTELLECT-3, 2512.16144) on GRPO: tokens outside [0.5, 5] have none."""
    return with_masked_is(grpo(), 0.5, 5.0, name="icepop")


def opsm() -> Algorithm:
    """Off-policy sequence masking (DeepSeek-V3.2, 2512.02556) on GRPO."""
    return with_offpolicy_mask(grpo(), 0.5, name="opsm").replace(update=STALE)


def unbiased_kl() -> Algorithm:
    """GRPO with DeepSeek-V3.2's KL (2512.02556): k3 weighed by the ratio."""
    return with_unbiased_kl(grpo(), name="unbiased_kl").replace(update=STALE)


def decoupled_ppo() -> Algorithm:
    """Decoupled PPO (2110.00641; AReaL, 2505.24298): clip near π_old, weigh from μ to π_old."""
    return with_truncated_is(ppo(), high=5.0, name="decoupled_ppo")
