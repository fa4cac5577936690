"""Freeze verl 0.9.1. In an environment of its own, on CPU:

uv venv verl && uv pip install --python verl verl==0.9.1 torch
cd tests/public && verl/bin/python freeze_verl.py
"""

import numpy as np
import torch
import verl
from freezing import freeze
from verl.trainer.config import AlgoConfig
from verl.trainer.ppo import core_algos as core
from verl.trainer.ppo import rollout_corr_helper as corr
from verl.workers.config import ActorConfig

F64 = torch.float64


def tensor(x):
    return torch.tensor(np.asarray(x, np.float64), dtype=F64)


def actor(**settings):
    loss = settings.pop("policy_loss", {})
    made = ActorConfig(strategy="fsdp", rollout_n=4, ppo_micro_batch_size_per_gpu=1, **settings)
    for name, value in loss.items():
        object.__setattr__(made.policy_loss, name, value)
    return made


def advantage(name, batch, **settings):
    """What an estimator of verl's makes of a batch, as [N, T]."""
    mask = tensor(batch.mask)
    config = settings.pop("config", None)
    given = {
        "token_level_rewards": tensor(batch.reward) * (mask if not batch.has_empty_row else 1),
        "response_mask": mask,
        "index": batch.group.astype(str).astype(object),
        "config": config,
        **settings,
    }
    return core.get_adv_estimator_fn(name)(**given)


def loss_of(name, batch, credit, agg, config, weights=None, old=None):
    """The value and the gradient of a policy loss."""
    logp = tensor(batch.logp).requires_grad_()
    old = tensor(batch.logp_old if old is None else old)
    fn = core.get_policy_loss_fn(name)
    value, _ = fn(
        old_log_prob=old,
        log_prob=logp,
        advantages=credit,
        response_mask=tensor(batch.mask),
        loss_agg_mode=agg,
        config=config,
        rollout_is_weights=weights,
    )
    value.backward()
    return {"loss": value.item(), "gradient": logp.grad.numpy()}


def policy(case, estimator, loss="vanilla", agg="token-mean", adv=None, narrow=None, **settings):
    config = actor(**settings)
    adv = adv or {}
    algo = AlgoConfig(**adv.pop("algo", {})) if "algo" in adv else None

    def run(batch):
        extra = {k: (f(batch) if callable(f) else f) for k, f in adv.items()}
        credit = advantage(estimator, batch, config=algo, **extra)[0].to(F64)
        credit = torch.where(tensor(batch.mask) > 0, credit, 0)
        return {"advantage": credit.numpy(), **loss_of(loss, batch, credit, agg, config)}

    shown = {k: (v if not callable(v) else "of the batch") for k, v in adv.items()}
    freeze(
        "verl",
        verl.__version__,
        case,
        run,
        batches=narrow or {},
        estimator=estimator,
        loss=loss,
        aggregation=agg,
        settings={**settings, **shown},
    )


NO_SINGLE = {"singletons": False}
OUTCOME = {"singletons": False, "reward_style": "real"}


def policies():
    modes = {
        "token_mean": "token-mean",
        "sequence_mean": "seq-mean-token-mean",
        "sequence_sum_mean": "seq-mean-token-sum",
        "constant_length": "seq-mean-token-sum-norm",
        "token_sum": "token-sum",
    }
    for name, mode in modes.items():
        policy(f"grpo_{name}", "grpo", agg=mode, narrow=NO_SINGLE, clip_ratio=0.2)
    policy(
        "dr_grpo",
        "grpo",
        agg="seq-mean-token-sum-norm",
        narrow=NO_SINGLE,
        adv={"norm_adv_by_std_in_grpo": False},
        clip_ratio=0.2,
    )
    policy(
        "dapo", "grpo", narrow=NO_SINGLE, clip_ratio=0.2, clip_ratio_low=0.2, clip_ratio_high=0.28
    )
    policy("rloo", "rloo_vectorized")
    policy("opo", "opo", loss="gpg", narrow=NO_SINGLE)
    policy("passk", "grpo_passk", narrow=NO_SINGLE, adv={"algo": {}})
    policy("reinforce_pp", "reinforce_plus_plus", adv={"algo": {"gamma": 0.9}})
    policy("reinforce_pp_baseline", "reinforce_plus_plus_baseline", narrow=NO_SINGLE)
    policy("remax", "remax", adv={"reward_baselines": lambda b: tensor(b.greedy_return)})
    for name, holes in (("otb", False), ("tir_otb", None)):
        key = "optimal_token_baseline" if name == "otb" else "tir_optimal_token_baseline"
        policy(
            name,
            key,
            narrow={"singletons": False, "holes": holes, "empty": False},
            adv={
                "old_log_probs": lambda b: tensor(b.logp_old),
                "sum_pi_squared": lambda b: tensor(b.sum_prob_sq),
            },
        )
    policy(
        "gspo",
        "grpo",
        "gspo",
        "seq-mean-token-mean",
        narrow=NO_SINGLE,
        clip_ratio_low=3e-1,
        clip_ratio_high=4e-1,
    )
    policy("sapo", "grpo", "sapo", "seq-mean-token-mean", narrow=NO_SINGLE)
    policy("cispo", "grpo", "cispo", narrow=NO_SINGLE, clip_ratio_low=0.5, clip_ratio_high=0.3)
    policy(
        "gmpo",
        "grpo",
        "geo_mean",
        narrow={**NO_SINGLE, "empty": False},
        clip_ratio_low=0.4,
        clip_ratio_high=0.4,
    )
    policy(
        "dppo_tv",
        "grpo",
        "dppo_tv",
        narrow=NO_SINGLE,
        clip_ratio=0.15,
        clip_ratio_low=0.15,
        clip_ratio_high=0.15,
    )
    policy(
        "dppo_kl",
        "grpo",
        "dppo_kl",
        narrow=NO_SINGLE,
        clip_ratio=0.05,
        clip_ratio_low=0.05,
        clip_ratio_high=0.05,
    )
    policy(
        "kl_cov",
        "grpo",
        "kl_cov",
        narrow=NO_SINGLE,
        policy_loss={"kl_cov_ratio": 0.2, "ppo_kl_coef": 0.7},
    )
    policy("dro", "grpo", "dro", narrow=NO_SINGLE, policy_loss={"dro_beta": 0.3})


def ppo():
    config = actor(clip_ratio=0.2)

    def run(batch):
        args = (tensor(batch.reward), tensor(batch.value_old), tensor(batch.mask), 0.9, 0.8)
        credit, returns = core.compute_gae_advantage_return(*args)
        credit = torch.where(args[2] > 0, credit, 0)
        value = tensor(batch.value).requires_grad_()
        critic, _ = core.compute_value_loss(value, returns, args[1], args[2], cliprange_value=0.5)
        critic.backward()
        made = loss_of("vanilla", batch, credit, "token-mean", config)
        return {
            **made,
            "advantage": credit.numpy(),
            "value_loss": critic.item(),
            "value_gradient": value.grad.numpy(),
        }

    # A reward on an empty row lies off the mask: verl's recursion takes it into the next token.
    freeze(
        "verl",
        verl.__version__,
        "ppo",
        run,
        batches={"empty": False},
        settings={"gamma": 0.9, "lam": 0.8, "clip_ratio": 0.2, "cliprange_value": 0.5},
    )


def penalties():
    kinds = {"k1": "kl", "k2": "mse", "k3": "low_var_kl", "absolute": "abs"}

    def of(kind):
        def run(batch):
            logp, mask = tensor(batch.logp).requires_grad_(), tensor(batch.mask)
            matrix = core.kl_penalty(logp, tensor(batch.logp_ref), kind)
            value = core.agg_loss(matrix, mask, "token-mean")
            value.backward()
            return {"loss": value.item(), "gradient": logp.grad.numpy()}

        return run

    for name, kind in kinds.items():
        freeze("verl", verl.__version__, f"kl_{name}", of(kind), settings={"kl_penalty": kind})


def corrections():
    config = actor(clip_ratio=0.2)
    kinds = {
        "tis_token": {"rollout_is": "token", "rollout_is_threshold": 2.0},
        "tis_sequence": {"rollout_is": "sequence", "rollout_is_threshold": 2.0},
        "tis_normalised": {
            "rollout_is": "token",
            "rollout_is_threshold": 2.0,
            "rollout_is_batch_normalize": True,
        },
        "icepop": {"rollout_is": "token", "rollout_is_threshold": "0.5_5.0"},
    }

    def of(settings):
        def run(batch):
            credit = advantage("grpo", batch)[0]
            mask = tensor(batch.mask)
            credit = torch.where(mask > 0, credit, 0)
            log_ratio = torch.where(mask > 0, tensor(batch.logp_old - batch.logp_sampler), 0)
            weights, _ = corr.compute_rollout_correction_weights(log_ratio, mask, **settings)
            return loss_of("vanilla", batch, credit, "token-mean", config, weights.to(F64))

        return run

    for name, settings in kinds.items():
        freeze("verl", verl.__version__, name, of(settings), settings=settings, batches=NO_SINGLE)


def main():
    policies()
    ppo()
    penalties()
    corrections()


if __name__ == "__main__":
    main()
