"""Methods that learn from which of two completions is the better one."""

from polopt.aggregate import group_mean
from polopt.algorithm import Algorithm
from polopt.reward import best_and_worst, outcome_return
from polopt.trajectory import (
    Sampling,
    Update,
    pairwise_logistic,
    pairwise_square,
    product_ratio,
)
from polopt.transform import chain


def dpo(*, beta: float = 0.1) -> Algorithm:
    """DPO (2305.18290): the likelihood of preferences, whose pairs are recorded trajectories."""
    return Algorithm(
        name="dpo",
        reward=chain(outcome_return(), best_and_worst()),
        trajectory=chain(product_ratio("logp_ref"), pairwise_logistic(beta)),
        aggregate=group_mean(ddof=1),
        sampling=Sampling(group_size=2),
        update=Update(epochs=4, minibatches=4),
    )


def ipo(*, beta: float = 0.1) -> Algorithm:
    """IPO (2310.12036): DPO with a squared loss that stops at a margin."""
    return dpo(beta=beta).replace(pairwise_logistic=pairwise_square(beta), name="ipo")


def online_dpo(*, beta: float = 0.1) -> Algorithm:
    """Online DPO (2402.04792): DPO on two fresh completions, told apart by the reward."""
    return dpo(beta=beta).replace(update=Update(), name="online_dpo")
