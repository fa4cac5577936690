"""Which composition each frozen case is compared with: the package's settings as arguments."""

from polopt import Algorithm, chain
from polopt.aggregate import (
    constant_length,
    sequence_mean,
    sequence_sum_mean,
    token_mean,
    token_sum,
)
from polopt.divergence import absolute, k1, k2, k3
from polopt.reward import (
    batch_whiten,
    best_minus_second,
    gae,
    group_mean_baseline,
    group_std_scale,
    leave_one_out_baseline,
    length_weighted_baseline,
    optimal_token_baseline,
    outcome_return,
    remax_baseline,
    reward_to_go,
)
from polopt.trajectory import (
    binary_kl,
    clip,
    covariance_penalty,
    detach_weight,
    divergence_mask,
    dual_clip,
    geometric_mean_surrogate,
    kl_penalty,
    masked_is,
    per_sequence,
    per_token,
    policy_gradient,
    sequence_ratio_token_grad,
    soft_gate,
    token_ratio,
    total_variation,
    truncated_is,
    unclipped,
    value_loss,
)

GROUP = chain(outcome_return(), group_mean_baseline(), group_std_scale(1e-6, 1))
# verl's vanilla loss always has the dual clip, of 3.
PPO = chain(token_ratio(), clip(0.2, 0.2), dual_clip(3.0))


def method(reward, trajectory, aggregate=None) -> Algorithm:
    """A composition by its sides; verl's default is the token mean."""
    return Algorithm(
        reward=chain(reward), trajectory=chain(trajectory), aggregate=aggregate or token_mean()
    )


def of_token(trajectory) -> Algorithm:
    return method(GROUP, chain(token_ratio(), trajectory))


VERL: dict[str, Algorithm] = {
    "grpo_token_mean": method(GROUP, PPO),
    "grpo_sequence_mean": method(GROUP, PPO, sequence_mean()),
    "grpo_sequence_sum_mean": method(GROUP, PPO, sequence_sum_mean()),
    "grpo_constant_length": method(GROUP, PPO, constant_length(9)),
    "grpo_token_sum": method(GROUP, PPO, token_sum()),
    "dr_grpo": method(chain(outcome_return(), group_mean_baseline()), PPO, constant_length(9)),
    "dapo": of_token(chain(clip(0.2, 0.28), dual_clip(3.0))),
    "rloo": method(chain(outcome_return(), leave_one_out_baseline()), PPO),
    "opo": method(chain(outcome_return(), length_weighted_baseline()), policy_gradient()),
    "passk": method(chain(outcome_return(), best_minus_second(scaled=True)), PPO),
    "reinforce_pp": method(chain(reward_to_go(0.9), batch_whiten()), PPO),
    "reinforce_pp_baseline": method(
        chain(outcome_return(), group_mean_baseline(), batch_whiten()), PPO
    ),
    "remax": method(chain(reward_to_go(), remax_baseline()), PPO),
    "otb": method(optimal_token_baseline(), PPO),
    "tir_otb": method(optimal_token_baseline(), PPO),
    "gspo": method(GROUP, chain(sequence_ratio_token_grad(), clip(0.3, 0.4)), sequence_mean()),
    "sapo": method(GROUP, chain(token_ratio(), soft_gate(1.0, 1.05)), sequence_mean()),
    "cispo": of_token(detach_weight(0.5, 0.3)),
    "gmpo": method(
        GROUP, chain(token_ratio(), geometric_mean_surrogate(0.4, 0.4)), sequence_mean()
    ),
    # ActorConfig's clip_ratio_c of 3 bounds the ratio, where the function alone would take 20.
    "dppo_tv": of_token(
        chain(detach_weight(high=2.0), divergence_mask(total_variation, 0.15, 0.15))
    ),
    "dppo_kl": of_token(chain(detach_weight(high=2.0), divergence_mask(binary_kl, 0.05, 0.05))),
    "kl_cov": of_token(chain(unclipped(), covariance_penalty(0.2, 0.7))),
    "dro": method(GROUP, chain(policy_gradient(), kl_penalty(k2, 0.3, "logp_old"))),
    "ppo": method(chain(gae(0.9, 0.8), batch_whiten()), chain(PPO, value_loss(1.0, 0.5))),
    "kl_k1": method(outcome_return(), kl_penalty(k1, 1.0)),
    "kl_k2": method(outcome_return(), kl_penalty(k2, 1.0)),
    "kl_k3": method(outcome_return(), kl_penalty(k3, 1.0)),
    "kl_absolute": method(outcome_return(), kl_penalty(absolute, 1.0)),
    "tis_token": method(GROUP, chain(PPO, truncated_is(high=2.0))),
    "tis_sequence": method(GROUP, chain(PPO, truncated_is(high=2.0, level=per_sequence))),
    "tis_normalised": method(
        GROUP, chain(PPO, truncated_is(high=2.0, level=per_token, normalise=True))
    ),
    "icepop": method(GROUP, chain(PPO, masked_is(0.5, 5.0))),
}
