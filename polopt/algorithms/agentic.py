"""Methods that give credit to the turns of an episode."""

from polopt.aggregate import sequence_mean, token_mean, turn_mean
from polopt.algorithm import Algorithm
from polopt.algorithms.grpo import GROUP_NORM
from polopt.divergence import k3
from polopt.reward import (
    batch_whiten,
    group_spread,
    outcome_return,
    per_turn_group_norm,
    step_group_advantage,
    turn_gae,
    turns,
)
from polopt.reward.turns import turn_starts
from polopt.trajectory import (
    Keep,
    Sampling,
    Update,
    clip,
    kl_penalty,
    token_ratio,
    turn_ratio,
    value_loss,
)
from polopt.transform import add, chain


def gigpo(*, weight: float = 1.0, gamma: float = 0.95) -> Algorithm:
    """GiGPO (2505.10978): the episode's group norm plus that of all steps from the same state."""
    episode = chain(outcome_return(), GROUP_NORM)
    return Algorithm(
        name="gigpo",
        reward=chain(add(episode, step_group_advantage(gamma), weights=(1.0, weight))),
        trajectory=chain(token_ratio(), clip(0.2, 0.2), kl_penalty(k3, 0.01)),
        aggregate=token_mean(),
        sampling=Sampling(group_size=8),
    )


def mt_grpo(*, coefficient: float = 1.0) -> Algorithm:
    """MT-GRPO (2505.11821): every turn but the last is also compared with its like in the group."""
    return Algorithm(
        name="mt_grpo",
        reward=chain(per_turn_group_norm(coefficient)),
        trajectory=chain(token_ratio(), clip(0.2, 0.2)),
        aggregate=token_mean(),
        sampling=Sampling(group_size=8),
    )


def turn_ppo() -> Algorithm:
    """Turn-PPO (2512.17008): a turn is one action, for the critic, the ratio and the mean."""
    return Algorithm(
        name="turn_ppo",
        reward=chain(turn_gae(0.99, 0.9)),
        trajectory=chain(turn_ratio(), clip(0.2, 0.2), value_loss(1.0, 0.2, turn_starts)),
        aggregate=turn_mean(),
        update=Update(minibatches=4),
    )


def bi_level_gae() -> Algorithm:
    """PPO with bi-level GAE (VAGEN; RAGEN, 2504.20073): over turns, then inside each."""
    return Algorithm(
        name="bi_level_gae",
        reward=chain(turns.bi_level_gae(), batch_whiten()),
        trajectory=chain(token_ratio(), clip(0.2, 0.28), value_loss(1.0, 0.2)),
        aggregate=token_mean(),
        update=Update(minibatches=4),
    )


def starpo(*, fraction: float = 0.25) -> Algorithm:
    """StarPO-S (RAGEN, 2504.20073): whole episodes, of the prompts whose rewards spread most."""
    return Algorithm(
        name="starpo",
        reward=chain(outcome_return(), GROUP_NORM),
        trajectory=chain(token_ratio(), clip(0.2, 0.28)),
        aggregate=sequence_mean(),
        sampling=Sampling(group_size=16, keep=Keep(by=group_spread, fraction=fraction)),
        update=Update(minibatches=4),
    )
