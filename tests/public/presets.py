"""Which composition each frozen case is compared with: the package's settings as arguments."""

from polopt import Algorithm, chain
from polopt.aggregate import (
    constant_length,
    group_mean,
    sequence_mean,
    sequence_sum_mean,
    token_mean,
    token_sum,
)
from polopt.divergence import absolute, k1, k2, k3
from polopt.reward import (
    batch_std_scale,
    batch_whiten,
    best_and_worst,
    best_minus_second,
    gae,
    group_mean_baseline,
    group_std_scale,
    leave_one_out_baseline,
    length_weighted_baseline,
    objective_weights,
    optimal_token_baseline,
    optimal_value_baseline,
    outcome_return,
    per_objective_group_norm,
    position_weight,
    remax_baseline,
    reward_to_go,
    teacher_credit,
)
from polopt.trajectory import (
    binary_kl,
    clip,
    covariance_clip,
    covariance_penalty,
    detach_weight,
    divergence_mask,
    dual_clip,
    entropy_bonus,
    entropy_quantile_mask,
    gamma_weight,
    geometric_mean_surrogate,
    kl_penalty,
    masked_is,
    offpolicy_sequence_mask,
    pairwise_logistic,
    pairwise_square,
    per_sequence,
    per_token,
    policy_gradient,
    product_ratio,
    ratio_cap,
    sequence_ratio,
    sequence_ratio_token_grad,
    soft_gate,
    squared_regression,
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

# TRL: 1e-4 beside the deviation, empty rows counted as rows, no dual clip.
TRL_GROUP = chain(outcome_return(), group_mean_baseline(), group_std_scale(1e-4, 1))
TRL_ROWS = sequence_mean(count_empty=True)
CLIP = chain(token_ratio(), clip(0.2, 0.2))


def trl(trajectory, aggregate=None, reward=TRL_GROUP) -> Algorithm:
    """TRL's group norm under a trajectory side; `dapo`, the default loss, is the token mean."""
    return method(reward, trajectory, aggregate)


TRL: dict[str, Algorithm] = {
    "grpo": trl(CLIP, TRL_ROWS),
    "dapo": trl(chain(token_ratio(), clip(0.2, 0.28))),
    "dr_grpo": trl(
        CLIP,
        constant_length(12, count_empty=True),
        chain(outcome_return(), group_mean_baseline()),
    ),
    # epsilon_high is the bound itself, 5, and there is none below.
    "cispo": trl(chain(token_ratio(), detach_weight(high=4.0))),
    "sapo": trl(chain(token_ratio(), soft_gate(1.0, 1.05)), TRL_ROWS),
    "vespo": trl(chain(product_ratio(), gamma_weight())),
    "gspo": trl(chain(sequence_ratio(), clip(0.3, 0.4)), TRL_ROWS),
    "luspo": trl(chain(sequence_ratio(), clip(0.3, 0.4)), sequence_sum_mean(count_empty=True)),
    "gmpo": trl(chain(token_ratio(), geometric_mean_surrogate(0.4, 0.4)), TRL_ROWS),
    "two_sided": trl(chain(token_ratio(), ratio_cap(1.5), clip(0.2, 0.2))),
    "lite_ppo": trl(
        CLIP, None, chain(outcome_return(), group_mean_baseline(), batch_std_scale(1e-4))
    ),
    "entropy_top_quantile": trl(chain(CLIP, entropy_quantile_mask(0.25, own_denominator=False))),
    "entropy_bonus": trl(chain(CLIP, entropy_bonus(0.1, aggregate=token_mean())), TRL_ROWS),
    "kl": trl(chain(CLIP, kl_penalty(k3, 0.3))),
    "kl_corrected": trl(chain(CLIP, kl_penalty(k3, 0.3, weighted=True))),
    "opsm_engine": trl(chain(CLIP, offpolicy_sequence_mask(0.1))),
    "opsm_old": trl(chain(CLIP, offpolicy_sequence_mask(0.1, "logp_old"))),
    "engine_token_truncate": trl(chain(CLIP, truncated_is(0.5, 2.0))),
    "engine_token_mask": trl(chain(CLIP, masked_is(0.5, 2.0))),
    "engine_sequence_truncate": trl(chain(CLIP, truncated_is(0.5, 2.0, per_sequence))),
    "engine_sequence_mask": trl(chain(CLIP, masked_is(0.5, 2.0, per_sequence))),
    "rloo": trl(
        chain(product_ratio(), clip(0.2, 0.2)),
        TRL_ROWS,
        chain(outcome_return(), leave_one_out_baseline()),
    ),
    "a2po": trl(
        chain(product_ratio("logp_ref"), squared_regression(0.1, 1.0)),
        TRL_ROWS,
        chain(outcome_return(), optimal_value_baseline()),
    ),
    "dpo": trl(
        chain(product_ratio("logp_ref"), pairwise_logistic(0.1)),
        group_mean(ddof=1),
        chain(outcome_return(), best_and_worst()),
    ),
    "iw_opd": trl(policy_gradient(), None, chain(teacher_credit(), position_weight(0.5))),
}
TUNIX: dict[str, Algorithm] = {
    "grpo": method(GROUP, CLIP, sequence_mean()),
    "dapo": of_token(chain(clip(0.2, 0.28), dual_clip(3.0))),
    "drgrpo": method(chain(outcome_return(), group_mean_baseline()), CLIP, constant_length(9)),
    "rloo": method(chain(outcome_return(), leave_one_out_baseline()), CLIP),
    "gspo_token": method(
        GROUP, chain(sequence_ratio_token_grad(), clip(0.3, 0.4)), sequence_mean()
    ),
    "grpo_seq_mean_token_sum": method(GROUP, CLIP, sequence_sum_mean()),
    "grpo_k1": method(GROUP, chain(CLIP, kl_penalty(k1, 0.3)), sequence_mean()),
    "grpo_k2": method(GROUP, chain(CLIP, kl_penalty(k2, 0.3)), sequence_mean()),
    "grpo_k3": method(GROUP, chain(CLIP, kl_penalty(k3, 0.3)), sequence_mean()),
    "grpo_tis": method(GROUP, chain(CLIP, truncated_is(high=2.0))),
    "ppo": method(chain(gae(0.9, 0.8), batch_whiten()), chain(PPO, value_loss(1.0, 0.5))),
    "dpo": TRL["dpo"],
}
VERL["gdpo"] = method(
    chain(per_objective_group_norm(objective_weights({"0": 1.0, "1": 0.5})), batch_whiten()),
    PPO,
)
VERL["bypass_reinforce"] = method(GROUP, policy_gradient())
VERL["clip_cov_all"] = of_token(chain(clip(0.2, 0.2), covariance_clip(1.0, 0.3, 5.0)))

TRL["online_dpo"] = TRL["dpo"]
TRL["online_ipo"] = trl(
    chain(product_ratio("logp_ref"), pairwise_square(0.5)),
    group_mean(ddof=1),
    chain(outcome_return(), best_and_worst()),
)
LOGITS = {"gkd": "trl 1.16.0"}  # compared on logits: see test_logits.py

# The methods that a case speaks for, where its name is not the key.
KEYS = {
    "passk": "passk_grpo",
    "tir_otb": "otb",
    "tis_token": "tis",
    "tis_sequence": "tis",
    "tis_normalised": "tis",
    "engine_token_truncate": "tis",
    "engine_sequence_truncate": "tis",
    "engine_token_mask": "icepop",
    "engine_sequence_mask": "mis",
    "opsm_engine": "opsm",
    "kl_corrected": "unbiased_kl",
    "a2po": "a_star_po",
    "drgrpo": "dr_grpo",
    "clip_cov_all": "clip_cov",
    "grpo_tis": "tis",
    "bypass_reinforce": "reinforce",
    "entropy_bonus": "adaptive_entropy",
    "online_ipo": "ipo",
}
