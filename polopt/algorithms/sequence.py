"""Methods whose ratio belongs to the sequence, as the reward does."""

from polopt.aggregate import sequence_mean, sequence_sum_mean, token_mean
from polopt.algorithm import Algorithm
from polopt.algorithms.grpo import GROUP_NORM
from polopt.reward import outcome_return
from polopt.trajectory import (
    Sampling,
    Update,
    clip,
    gamma_weight,
    geometric_mean_surrogate,
    product_ratio,
    sequence_ratio,
    sequence_ratio_token_grad,
    token_ratio,
)
from polopt.transform import chain


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


def gspo_token() -> Algorithm:
    """GSPO-token (2507.18071): the sequence's ratio with each token's own gradient.

    The same gradient as GSPO where all tokens of a row have one credit.
    """
    made = gspo().replace(sequence_ratio=sequence_ratio_token_grad())
    return made.replace(name="gspo_token")


def gmpo() -> Algorithm:
    """GMPO (2507.20673): the geometric mean of token ratios that are clipped one by one."""
    return Algorithm(
        name="gmpo",
        reward=chain(outcome_return(), GROUP_NORM),
        trajectory=chain(token_ratio(), geometric_mean_surrogate(0.4, 0.4)),
        aggregate=sequence_mean(),
        sampling=Sampling(group_size=8),
        update=Update(minibatches=8),
    )


def luspo() -> Algorithm:
    """LUSPO (2602.05261): GSPO with each row weighed by its length, which the ratio divided by."""
    return gspo().replace(clip=clip(2e-3, 2.5e-3), aggregate=sequence_sum_mean(), name="luspo")


def vespo() -> Algorithm:
    """VESPO (2602.10693): whole-sequence ratios under a Gamma-shaped weight.

    Differs from the paper, which takes up to 64 updates per batch, by 4.
    """
    return Algorithm(
        name="vespo",
        reward=chain(outcome_return(), GROUP_NORM),
        trajectory=chain(product_ratio(), gamma_weight()),
        aggregate=token_mean(),
        sampling=Sampling(group_size=8),
        update=Update(minibatches=4),
    )
