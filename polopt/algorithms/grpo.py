"""GRPO and the methods that change one of its parts."""

from polopt.aggregate import constant_length, sequence_mean, token_mean
from polopt.algorithm import Algorithm
from polopt.divergence import k3
from polopt.reward import (
    drop_zero_spread_groups,
    group_mean_baseline,
    group_std_scale,
    outcome_return,
    overlong_soft_penalty,
)
from polopt.reward.filters import spread
from polopt.trajectory import (
    Refill,
    Sampling,
    Update,
    clip,
    detach_weight,
    kl_penalty,
    sequence_ratio,
    token_ratio,
)
from polopt.transform import chain

GROUP_NORM = chain(group_mean_baseline(), group_std_scale())


def grpo(*, kl: float = 0.04) -> Algorithm:
    """GRPO (2402.03300): group-normalised returns, clipped ratios, KL to the reference (k3)."""
    return Algorithm(
        name="grpo",
        reward=chain(outcome_return(), group_mean_baseline(), group_std_scale()),
        trajectory=chain(token_ratio(), clip(0.2, 0.2), kl_penalty(k3, kl)),
        aggregate=sequence_mean(),
        sampling=Sampling(group_size=64),
    )


def dr_grpo(*, max_length: float = 3000) -> Algorithm:
    """Dr. GRPO (2503.20783): no division by the group's spread, none by the row's length."""
    return Algorithm(
        name="dr_grpo",
        reward=chain(outcome_return(), group_mean_baseline()),
        trajectory=chain(token_ratio(), clip(0.2, 0.2)),
        aggregate=constant_length(max_length),
        sampling=Sampling(group_size=8),
    )


def dapo(*, max_length: float = 20480, cache: float = 4096) -> Algorithm:
    """DAPO (2503.14476): clip higher, sample dynamically, weigh tokens alike, shape length."""
    return Algorithm(
        name="dapo",
        reward=chain(
            overlong_soft_penalty(max_length, cache),
            outcome_return(),
            drop_zero_spread_groups(),
            GROUP_NORM,
        ),
        trajectory=chain(token_ratio(), clip(0.2, 0.28)),
        aggregate=token_mean(),
        sampling=Sampling(group_size=16, refill=Refill(by=spread, max_rounds=10)),
        update=Update(minibatches=16),
    )


def gspo() -> Algorithm:
    """GSPO (2507.18071): one geometric-mean ratio per sequence, clipped very near to one."""
    return Algorithm(
        name="gspo",
        reward=chain(outcome_return(), GROUP_NORM),
        trajectory=chain(sequence_ratio(), clip(3e-4, 4e-4)),
        aggregate=sequence_mean(),
        sampling=Sampling(group_size=8),
        update=Update(minibatches=4),
    )


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
