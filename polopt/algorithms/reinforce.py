"""REINFORCE and its critic-free relatives."""

from polopt.aggregate import sequence_sum_mean, token_mean
from polopt.algorithm import Algorithm
from polopt.divergence import k1
from polopt.reward import (
    batch_whiten,
    kl_in_reward,
    leave_one_out_baseline,
    outcome_return,
    remax_baseline,
    reward_to_go,
)
from polopt.trajectory import Sampling, Update, clip, policy_gradient, token_ratio
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
