"""The trajectory side: ratios, surrogates and penalties inside the gradient, and sampling."""

from polopt.trajectory.clipping import (
    adaptive_clip,
    clip,
    dual_clip,
    geometric_mean_surrogate,
    probability_clip,
    unclipped,
)
from polopt.trajectory.corrections import (
    masked_is,
    per_sequence,
    per_sequence_mean,
    per_token,
    truncated_is,
)
from polopt.trajectory.distillation import divergence_loss, reverse_kl_loss, sorted_distance_loss
from polopt.trajectory.gates import gamma_weight, soft_gate
from polopt.trajectory.likelihood import positive_likelihood, sampler_likelihood
from polopt.trajectory.masks import (
    binary_kl,
    covariance_clip,
    divergence_mask,
    entropy_quantile_mask,
    offpolicy_sequence_mask,
    one_side_mask,
    ring_mask,
    total_variation,
    two_side_mask,
)
from polopt.trajectory.penalties import (
    adaptive_entropy_bonus,
    covariance_penalty,
    entropy_bonus,
    kl_penalty,
)
from polopt.trajectory.preference import pairwise_logistic, pairwise_square
from polopt.trajectory.ratios import (
    product_ratio,
    ratio_cap,
    sequence_ratio,
    sequence_ratio_token_grad,
    token_ratio,
    turn_ratio,
)
from polopt.trajectory.regression import (
    flow_balance,
    group_centre,
    squared_regression,
    value_regression,
)
from polopt.trajectory.sampling import (
    Companion,
    Keep,
    LogMeanExp,
    Mixture,
    Prioritise,
    Refill,
    Sampling,
    Update,
)
from polopt.trajectory.values import every_token, process_reward_loss, turn_starts, value_loss
from polopt.trajectory.weights import (
    asymmetric_flip,
    detach_weight,
    exponential_weight,
    policy_gradient,
    tapered_weight,
)

__all__ = [
    "Companion",
    "Keep",
    "LogMeanExp",
    "Mixture",
    "Prioritise",
    "Refill",
    "Sampling",
    "Update",
    "adaptive_clip",
    "adaptive_entropy_bonus",
    "asymmetric_flip",
    "binary_kl",
    "clip",
    "covariance_clip",
    "covariance_penalty",
    "detach_weight",
    "divergence_loss",
    "divergence_mask",
    "dual_clip",
    "entropy_bonus",
    "entropy_quantile_mask",
    "every_token",
    "exponential_weight",
    "flow_balance",
    "gamma_weight",
    "geometric_mean_surrogate",
    "group_centre",
    "kl_penalty",
    "masked_is",
    "offpolicy_sequence_mask",
    "one_side_mask",
    "pairwise_logistic",
    "pairwise_square",
    "per_sequence",
    "per_sequence_mean",
    "per_token",
    "policy_gradient",
    "positive_likelihood",
    "probability_clip",
    "process_reward_loss",
    "product_ratio",
    "ratio_cap",
    "reverse_kl_loss",
    "ring_mask",
    "sampler_likelihood",
    "sequence_ratio",
    "sequence_ratio_token_grad",
    "soft_gate",
    "sorted_distance_loss",
    "squared_regression",
    "tapered_weight",
    "token_ratio",
    "total_variation",
    "truncated_is",
    "turn_ratio",
    "turn_starts",
    "two_side_mask",
    "unclipped",
    "value_loss",
    "value_regression",
]
