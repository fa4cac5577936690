"""Actor-critic methods."""

from polopt.aggregate import token_mean
from polopt.algorithm import Algorithm
from polopt.divergence import k1
from polopt.reward import batch_whiten, gae, kl_in_reward
from polopt.trajectory import (
    Update,
    clip,
    entropy_bonus,
    policy_gradient,
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
