"""Methods that choose which samples teach: right or wrong ones, by consensus, or by memory."""

from polopt.aggregate import sequence_mean, token_mean
from polopt.algorithm import Algorithm
from polopt.algorithms.grpo import GROUP_NORM, grpo
from polopt.reward import (
    asymmetric_scale,
    batch_whiten,
    batch_whiten_sequences,
    beta_tracker,
    cluster_probability_reward,
    implicit_process_reward,
    keep_negative,
    keep_positive,
    largest_return_scale,
    leave_one_out_baseline,
    majority_vote_reward,
    outcome_return,
    reward_to_go,
    token_leave_one_out,
)
from polopt.trajectory import (
    Prioritise,
    Sampling,
    Update,
    clip,
    process_reward_loss,
    token_ratio,
)
from polopt.transform import add, chain


def w_reinforce(*, positive: float = 0.1) -> Algorithm:
    """W-REINFORCE (2506.01347): right samples weigh a tenth of wrong ones."""
    return Algorithm(
        name="w_reinforce",
        reward=chain(outcome_return(), asymmetric_scale(positive, 1.0)),
        trajectory=chain(token_ratio(), clip(0.2, 0.2)),
        aggregate=token_mean(),
        sampling=Sampling(group_size=8),
        update=Update(minibatches=4),
    )


def nsr() -> Algorithm:
    """NSR (2506.01347): wrong samples only, which are unlearnt: the rest keeps its variety."""
    wrong = chain(outcome_return(), keep_negative(), asymmetric_scale(0.0, 1.0))
    return w_reinforce().replace(reward=wrong, name="nsr")


def psr() -> Algorithm:
    """PSR (2506.01347): right samples only, which are imitated."""
    right = chain(outcome_return(), keep_positive(), asymmetric_scale(1.0, 0.0))
    return w_reinforce().replace(reward=right, name="psr")


def ttrl() -> Algorithm:
    """TTRL (2504.16084): GRPO on the agreement with the group's majority, without labels."""
    reward = chain(majority_vote_reward(), GROUP_NORM)
    return grpo().replace(reward=reward, kl_penalty=chain(), name="ttrl")


def empo() -> Algorithm:
    """EMPO (2504.05812): GRPO on the share of the group that gives the same answer."""
    reward = chain(cluster_probability_reward(), GROUP_NORM)
    return grpo().replace(reward=reward, kl_penalty=chain(), name="empo")


def spo_single_stream() -> Algorithm:
    """SPO (2509.13232): one sample per prompt, compared with what is remembered of the prompt."""
    return Algorithm(
        name="spo_single_stream",
        reward=chain(outcome_return(), beta_tracker(drift="drift"), batch_whiten_sequences()),
        trajectory=chain(token_ratio(), clip(0.2, 0.28)),
        aggregate=token_mean(),
        sampling=Sampling(prioritise=Prioritise()),
        update=Update(minibatches=4),
    )


def prime(*, beta: float = 0.05, process: float = 5.0, outcome: float = 5.0) -> Algorithm:
    """PRIME (2502.01456): a process reward from a model that is trained on outcomes beside."""
    tokens = chain(implicit_process_reward(beta), largest_return_scale(), token_leave_one_out())
    whole = chain(outcome_return(), leave_one_out_baseline())
    both = add(chain(tokens, reward_to_go()), whole, weights=(process, outcome))
    loss = process_reward_loss(beta, aggregate=sequence_mean())
    return Algorithm(
        name="prime",
        reward=chain(both, batch_whiten()),
        trajectory=chain(token_ratio(), clip(0.2, 0.2), loss),
        aggregate=token_mean(),
        sampling=Sampling(group_size=4),
        update=Update(minibatches=4),
    )
