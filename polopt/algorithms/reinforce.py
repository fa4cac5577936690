"""REINFORCE and its critic-free relatives."""

from polopt.aggregate import sequence_sum_mean, token_mean
from polopt.algorithm import Algorithm
from polopt.divergence import k1, k2
from polopt.reward import (
    batch_std_scale,
    batch_whiten,
    effective_sample_rescale,
    group_mean_baseline,
    kl_in_reward,
    leave_one_out_baseline,
    length_weighted_baseline,
    optimal_token_baseline,
    outcome_return,
    remax_baseline,
    reward_to_go,
)
from polopt.trajectory import Sampling, Update, clip, kl_penalty, policy_gradient, token_ratio
from polopt.trajectory.sampling import Companion
from polopt.transform import chain


def reinforce() -> Algorithm:
    """REINFORCE (Williams 1992): the return times the score, nothing else."""
    return Algorithm(
        name="reinforce",
        reward=chain(outcome_return()),
        trajectory=chain(policy_gradient()),
        aggregate=sequence_sum_mean(),
    )


def rloo(*, kl: float = 0.03) -> Algorithm:
    """RLOO (2402.14740): the whole completion is one action, compared with its siblings.

    Differs from TRL, which clips the full sequence ratio, and from verl, which clips token ratios
    under a token mean; the paper takes one policy-gradient step.
    """
    return Algorithm(
        name="rloo",
        reward=chain(kl_in_reward(kl, k1), outcome_return(), leave_one_out_baseline()),
        trajectory=chain(policy_gradient()),
        aggregate=sequence_sum_mean(),
        sampling=Sampling(group_size=4),
    )


def remax(*, kl: float = 0.1) -> Algorithm:
    """ReMax (2310.10505): the baseline is the return of the greedy completion.

    The KL of a token is paid in its return to go; the greedy return is the verifier's.
    """
    return Algorithm(
        name="remax",
        reward=chain(kl_in_reward(kl, k1), reward_to_go(), remax_baseline()),
        trajectory=chain(policy_gradient()),
        aggregate=sequence_sum_mean(),
        sampling=Sampling(companion=Companion(column="greedy_return", greedy=True)),
    )


def reinforce_pp(*, kl: float = 0.01) -> Algorithm:
    """REINFORCE++ (2501.03262): token KL in the reward, credit whitened over the global batch."""
    return Algorithm(
        name="reinforce_pp",
        reward=chain(kl_in_reward(kl, k1), reward_to_go(), batch_whiten()),
        trajectory=chain(token_ratio(), clip(0.2, 0.2)),
        aggregate=token_mean(),
        update=Update(minibatches=8),
    )


def reinforce_pp_baseline(*, kl: float = 1e-5) -> Algorithm:
    """REINFORCE++-baseline (2501.03262): group mean, batch spread, k2 in the loss."""
    return Algorithm(
        name="reinforce_pp_baseline",
        reward=chain(outcome_return(), group_mean_baseline(), batch_whiten()),
        trajectory=chain(token_ratio(), clip(0.2, 0.2), kl_penalty(k2, kl)),
        aggregate=token_mean(),
        sampling=Sampling(group_size=8),
        update=Update(minibatches=8),
    )


def opo() -> Algorithm:
    """OPO (2505.23585): the baseline of least variance, strictly on-policy."""
    return Algorithm(
        name="opo",
        reward=chain(outcome_return(), length_weighted_baseline()),
        trajectory=chain(policy_gradient()),
        aggregate=token_mean(),
        sampling=Sampling(group_size=8),
    )


def otb() -> Algorithm:
    """OTB (2602.07078): an optimal baseline for every position of the group."""
    return Algorithm(
        name="otb",
        reward=chain(optimal_token_baseline()),
        trajectory=chain(token_ratio(), clip(0.2, 0.2)),
        aggregate=token_mean(),
        sampling=Sampling(group_size=8),
    )


def gpg() -> Algorithm:
    """GPG (2504.02546): no surrogate at all; groups with a gradient stand for those without."""
    return Algorithm(
        name="gpg",
        reward=chain(outcome_return(), group_mean_baseline(), effective_sample_rescale()),
        trajectory=chain(policy_gradient()),
        aggregate=token_mean(),
        sampling=Sampling(group_size=8),
    )


def lite_ppo() -> Algorithm:
    """Lite PPO (2508.08221): the group's mean, the batch's spread, a token mean: no more."""
    return Algorithm(
        name="lite_ppo",
        reward=chain(outcome_return(), group_mean_baseline(), batch_std_scale()),
        trajectory=chain(token_ratio(), clip(0.2, 0.2)),
        aggregate=token_mean(),
        sampling=Sampling(group_size=8),
        update=Update(minibatches=4),
    )
