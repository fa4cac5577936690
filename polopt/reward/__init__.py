"""The reward side: pieces that turn rewards into credit, once per rollout batch."""

from polopt.reward.agreement import cluster_probability_reward, majority_vote_reward
from polopt.reward.baselines import (
    constant_baseline,
    group_mean_baseline,
    leave_one_out_baseline,
    length_weighted_baseline,
    log_mean_exp_baseline,
    optimal_value_baseline,
    remax_baseline,
    shift_baseline,
)
from polopt.reward.filters import (
    accuracy_window,
    drop_truncated,
    drop_zero_spread_groups,
    group_spread,
    keep_top_spread,
)
from polopt.reward.gae import gae
from polopt.reward.kl import kl_in_reward
from polopt.reward.objectives import objective_weights, per_objective_group_norm
from polopt.reward.pairs import best_and_worst
from polopt.reward.pass_at_k import analytic_pass_at_k, best_minus_second, max_at_k
from polopt.reward.process import implicit_process_reward, largest_return_scale, token_leave_one_out
from polopt.reward.returns import outcome_return, reward_to_go
from polopt.reward.scaling import (
    batch_std_scale,
    batch_whiten,
    batch_whiten_sequences,
    beta_normalise,
    effective_sample_rescale,
    group_std_scale,
)
from polopt.reward.shaping import entropy_shaping, length_penalty, overlong_soft_penalty
from polopt.reward.signs import asymmetric_scale, keep_negative, keep_positive
from polopt.reward.teacher import (
    future_mean_return,
    position_weight,
    teacher_credit,
    teacher_reward,
)
from polopt.reward.token_baselines import optimal_token_baseline
from polopt.reward.trackers import beta_tracker, smooth_standardise
from polopt.reward.trees import (
    alike,
    bernoulli_spread,
    by_size,
    multi_level_group_mean,
    share_tree_tokens,
    shared_prefix_mean,
    sibling_spread,
    tree_backup,
)
from polopt.reward.turns import bi_level_gae, per_turn_group_norm, step_group_advantage, turn_gae

__all__ = [
    "accuracy_window",
    "alike",
    "analytic_pass_at_k",
    "asymmetric_scale",
    "batch_std_scale",
    "batch_whiten",
    "batch_whiten_sequences",
    "bernoulli_spread",
    "best_and_worst",
    "best_minus_second",
    "beta_normalise",
    "beta_tracker",
    "bi_level_gae",
    "by_size",
    "cluster_probability_reward",
    "constant_baseline",
    "drop_truncated",
    "drop_zero_spread_groups",
    "effective_sample_rescale",
    "entropy_shaping",
    "future_mean_return",
    "gae",
    "group_mean_baseline",
    "group_spread",
    "group_std_scale",
    "implicit_process_reward",
    "keep_negative",
    "keep_positive",
    "keep_top_spread",
    "kl_in_reward",
    "largest_return_scale",
    "leave_one_out_baseline",
    "length_penalty",
    "length_weighted_baseline",
    "log_mean_exp_baseline",
    "majority_vote_reward",
    "max_at_k",
    "multi_level_group_mean",
    "objective_weights",
    "optimal_token_baseline",
    "optimal_value_baseline",
    "outcome_return",
    "overlong_soft_penalty",
    "per_objective_group_norm",
    "per_turn_group_norm",
    "position_weight",
    "remax_baseline",
    "reward_to_go",
    "share_tree_tokens",
    "shared_prefix_mean",
    "shift_baseline",
    "sibling_spread",
    "smooth_standardise",
    "step_group_advantage",
    "teacher_credit",
    "teacher_reward",
    "token_leave_one_out",
    "tree_backup",
    "turn_gae",
]
