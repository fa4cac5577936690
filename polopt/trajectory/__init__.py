"""The trajectory side: ratios, surrogates and penalties inside the gradient, and sampling."""

from polopt.trajectory.clipping import clip, dual_clip
from polopt.trajectory.penalties import entropy_bonus, kl_penalty
from polopt.trajectory.ratios import sequence_ratio, token_ratio
from polopt.trajectory.sampling import Refill, Sampling, Update
from polopt.trajectory.values import value_loss
from polopt.trajectory.weights import detach_weight, policy_gradient

__all__ = [
    "Refill",
    "Sampling",
    "Update",
    "clip",
    "detach_weight",
    "dual_clip",
    "entropy_bonus",
    "kl_penalty",
    "policy_gradient",
    "sequence_ratio",
    "token_ratio",
    "value_loss",
]
