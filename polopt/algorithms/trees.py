"""Methods whose trajectories branch: rows of a group share their beginnings."""

from polopt.aggregate import sequence_mean, token_mean
from polopt.algorithm import Algorithm
from polopt.algorithms.grpo import GROUP_NORM
from polopt.reward import (
    batch_whiten,
    multi_level_group_mean,
    outcome_return,
    share_tree_tokens,
    tree_backup,
)
from polopt.trajectory import Branch, Sampling, Uncertain, clip, dual_clip, token_ratio
from polopt.transform import chain


def treerpo() -> Algorithm:
    """TreeRPO (2506.05183): values backed up a tree, each node compared with its siblings."""
    return Algorithm(
        name="treerpo",
        reward=chain(outcome_return(), share_tree_tokens(), tree_backup()),
        trajectory=chain(token_ratio(), clip(0.2, 0.2)),
        aggregate=token_mean(),
        sampling=Sampling(group_size=8, branch=Branch(width=2, depth=3)),
    )


def treepo() -> Algorithm:
    """TreePO (2508.17445): compared with every sub-group that shares a longer beginning."""
    return Algorithm(
        name="treepo",
        reward=chain(
            outcome_return(), multi_level_group_mean(), batch_whiten(), share_tree_tokens()
        ),
        trajectory=chain(token_ratio(), clip(0.2, 0.28), dual_clip(10.0)),
        aggregate=token_mean(),
        sampling=Sampling(group_size=8, branch=Branch(width=2, depth=3)),
    )


def arpo() -> Algorithm:
    """ARPO (2507.19849): branch where the policy hesitates after a tool's answer; GRPO's credit.

    The soft attribution. The hard one adds `shared_prefix_mean()` to the reward side.
    """
    return Algorithm(
        name="arpo",
        reward=chain(outcome_return(), GROUP_NORM, share_tree_tokens()),
        trajectory=chain(token_ratio(), clip(0.2, 0.2)),
        aggregate=sequence_mean(),
        sampling=Sampling(group_size=16, branch=Branch(uncertain=Uncertain())),
    )
