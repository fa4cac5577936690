"""GRPO and the methods that change one of its parts."""

from polopt.aggregate import constant_length, sequence_mean, token_mean
from polopt.algorithm import Algorithm
from polopt.divergence import k3
from polopt.reward import (
    analytic_pass_at_k,
    batch_whiten_sequences,
    beta_normalise,
    drop_zero_spread_groups,
    group_mean_baseline,
    group_std_scale,
    outcome_return,
    overlong_soft_penalty,
    per_objective_group_norm,
)
from polopt.reward.filters import spread
from polopt.trajectory import (
    Refill,
    Sampling,
    Update,
    clip,
    kl_penalty,
    token_ratio,
)
from polopt.transform import Transform, chain

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


def bnpo() -> Algorithm:
    """BNPO (2506.02864): divide by the density of the group's pass rate, fitted to the batch.

    TRL's loss of the same name is a token mean of each micro-batch, averaged: it depends on the
    split, which law 1 forbids by definition, and has no key here.
    """
    return Algorithm(
        name="bnpo",
        reward=chain(outcome_return(), beta_normalise()),
        trajectory=chain(token_ratio(), clip(0.2, 0.2)),
        aggregate=token_mean(),
        sampling=Sampling(group_size=16),
        update=Update(minibatches=4),
    )


def gdpo() -> Algorithm:
    """GDPO (2601.05242): every reward component normalised by itself, then summed and whitened."""
    return Algorithm(
        name="gdpo",
        reward=chain(per_objective_group_norm(), batch_whiten_sequences()),
        trajectory=chain(token_ratio(), clip(0.2, 0.2)),
        aggregate=token_mean(),
        sampling=Sampling(group_size=16),
        update=Update(minibatches=4),
    )


def passk_grpo(*, credit: Transform | None = None) -> Algorithm:
    """Pass@k training (2508.10751): credit for what a sample adds to the best of k.

    `credit` is `analytic_pass_at_k(k=4)` unless given: `best_minus_second()` (2503.19595) and
    `max_at_k(k=4)` (PKPO, 2505.15201) are the other two.
    """
    return Algorithm(
        name="passk_grpo",
        reward=chain(outcome_return(), credit or analytic_pass_at_k(k=4)),
        trajectory=chain(token_ratio(), clip(0.2, 0.2)),
        aggregate=token_mean(),
        sampling=Sampling(group_size=8),
    )
