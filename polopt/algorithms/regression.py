"""Methods that fit the policy's log-ratio to the reward instead of climbing it."""

from polopt.aggregate import group_mean, sequence_mean
from polopt.algorithm import Algorithm
from polopt.algorithms.grpo import GROUP_NORM
from polopt.reward import group_mean_baseline, optimal_value_baseline, outcome_return
from polopt.trajectory import (
    Companion,
    LogMeanExp,
    Sampling,
    Update,
    flow_balance,
    group_centre,
    pairwise_regression,
    product_ratio,
    squared_regression,
    value_regression,
)
from polopt.transform import chain

AGAIN = Update(minibatches=4)


def dro(*, beta: float = 1.0) -> Algorithm:
    """DRO (2405.19107): fit log-ratio and a learned value of the prompt to single returns."""
    return Algorithm(
        name="dro",
        reward=chain(outcome_return()),
        trajectory=chain(product_ratio("logp_ref"), value_regression(beta)),
        aggregate=sequence_mean(),
        update=AGAIN,
    )


def rebel(*, eta: float = 1.0) -> Algorithm:
    """REBEL (2404.16767): fit differences of log-ratios to differences of rewards, by pairs."""
    return Algorithm(
        name="rebel",
        reward=chain(outcome_return(), group_mean_baseline()),
        trajectory=chain(product_ratio(), pairwise_regression(eta)),
        aggregate=group_mean(ddof=0),
        sampling=Sampling(group_size=2),
        update=AGAIN,
    )


def gvpo(*, beta: float = 0.1) -> Algorithm:
    """GVPO (2504.19599): the variance of what is left when reward explains the log-ratio."""
    return Algorithm(
        name="gvpo",
        reward=chain(outcome_return(), group_mean_baseline()),
        trajectory=chain(product_ratio(), group_centre(), squared_regression(beta, 0.5)),
        aggregate=group_mean(ddof=1),
        sampling=Sampling(group_size=8),
        update=AGAIN,
    )


def kimi_pmd(*, tau: float = 0.01) -> Algorithm:
    """Kimi k1.5 (2501.12599): mirror descent; each rollout starts from a new reference."""
    return Algorithm(
        name="kimi_pmd",
        reward=chain(outcome_return(), group_mean_baseline()),
        trajectory=chain(product_ratio(), squared_regression(tau, 0.5, per_beta=True)),
        aggregate=sequence_mean(),
        sampling=Sampling(group_size=8),
        update=Update(minibatches=4, reset_optimizer=True, reference="previous"),
    )


def a_star_po(*, beta: float = 1e-3, beta_value: float = 0.5) -> Algorithm:
    """A*-PO (2505.20686): regress on R − V*, with V* from eight samples of the reference."""
    optimal = Companion(
        column="optimal_value", policy="reference", samples=8, reduce=LogMeanExp(beta_value)
    )
    return Algorithm(
        name="a_star_po",
        reward=chain(outcome_return(), optimal_value_baseline()),
        trajectory=chain(product_ratio("logp_ref"), squared_regression(beta, 1.0)),
        aggregate=sequence_mean(),
        sampling=Sampling(companion=optimal),
        update=AGAIN,
    )


def flowrl(*, beta: float = 15.0) -> Algorithm:
    """FlowRL (2509.15207): match exp(β·R) as a whole, with a learned partition."""
    return Algorithm(
        name="flowrl",
        reward=chain(outcome_return(), GROUP_NORM),
        trajectory=chain(product_ratio(), flow_balance(beta)),
        aggregate=sequence_mean(),
        sampling=Sampling(group_size=8),
        update=AGAIN,
    )
