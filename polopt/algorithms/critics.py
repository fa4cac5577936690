"""Actor-critic methods."""

from polopt.aggregate import token_mean
from polopt.algorithm import Algorithm
from polopt.divergence import k1
from polopt.reward import batch_whiten, gae, kl_in_reward
from polopt.trajectory import (
    Sampling,
    Update,
    clip,
    entropy_bonus,
    policy_gradient,
    positive_likelihood,
    token_ratio,
    value_loss,
)
from polopt.transform import chain


def a2c(*, gamma: float = 1.0, lam: float = 1.0, entropy: float = 0.01) -> Algorithm:
    """A2C (1602.01783): a critic's advantage times the score, one step per batch.

    Differs from the paper's gamma of 0.99: a text has no horizon to discount.
    """
    return Algorithm(
        name="a2c",
        reward=chain(gae(gamma, lam)),
        trajectory=chain(policy_gradient(), value_loss(0.5, None), entropy_bonus(entropy)),
        aggregate=token_mean(),
    )


def ppo(*, kl: float = 0.02, gamma: float = 1.0, lam: float = 0.95) -> Algorithm:
    """PPO (1707.06347) with the settings of InstructGPT (2203.02155): KL in the reward, a critic.

    Differs from verl, which also clips the objective of negative credit: add `dual_clip(3.0)`.
    """
    return Algorithm(
        name="ppo",
        reward=chain(kl_in_reward(kl, k1), gae(gamma, lam), batch_whiten()),
        trajectory=chain(token_ratio(), clip(0.2, 0.2), value_loss(1.0, 0.2)),
        aggregate=token_mean(),
        update=Update(epochs=1, minibatches=8),
    )


def vc_ppo(*, lam: float = 0.95, critic_lam: float = 1.0) -> Algorithm:
    """VC-PPO (2503.01491): the critic is fitted to plain returns, the policy to GAE.

    The critic's pre-training on the starting policy is a run of its own.
    """
    return Algorithm(
        name="vc_ppo",
        reward=chain(gae(1.0, lam, critic_lam), batch_whiten()),
        trajectory=chain(token_ratio(), clip(0.2, 0.2), value_loss(1.0, 0.2)),
        aggregate=token_mean(),
        update=Update(minibatches=8),
    )


def vapo(*, factor: float = 0.05, likelihood: float = 0.1) -> Algorithm:
    """VAPO (2504.05118): VC-PPO with λ by length, clip higher, and imitation of what was right."""
    imitation = positive_likelihood(likelihood)
    return Algorithm(
        name="vapo",
        reward=chain(gae(1.0, 0.95, 1.0, factor), batch_whiten()),
        trajectory=chain(token_ratio(), clip(0.2, 0.28), value_loss(1.0, 0.2), imitation),
        aggregate=token_mean(),
        sampling=Sampling(group_size=16),
        update=Update(minibatches=8),
    )
