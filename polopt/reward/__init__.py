"""The reward side: pieces that turn rewards into credit, once per rollout batch."""

from polopt.reward.baselines import (
    group_mean_baseline,
    leave_one_out_baseline,
    remax_baseline,
)
from polopt.reward.filters import drop_truncated, drop_zero_spread_groups
from polopt.reward.gae import gae
from polopt.reward.kl import kl_in_reward
from polopt.reward.returns import outcome_return, reward_to_go
from polopt.reward.scaling import batch_whiten, group_std_scale
from polopt.reward.shaping import overlong_soft_penalty

__all__ = [
    "batch_whiten",
    "drop_truncated",
    "drop_zero_spread_groups",
    "gae",
    "group_mean_baseline",
    "group_std_scale",
    "kl_in_reward",
    "leave_one_out_baseline",
    "outcome_return",
    "overlong_soft_penalty",
    "remax_baseline",
    "reward_to_go",
]
