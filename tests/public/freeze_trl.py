"""Freeze TRL 1.16.0. In an environment of its own, on CPU:

    uv venv trl && uv pip install --python trl trl==1.16.0 torch
    cd tests/public && trl/bin/python freeze_trl.py [CASE ...]

A trainer's loss method reads a few attributes of the trainer, and a model: it is called unbound,
on a stand-in that holds those attributes and answers with the batch's log-probabilities. What TRL
computes inside a longer method (group credit, engine correction) is run from that method's source.
"""

import inspect
import sys
import textwrap
from collections import defaultdict
from functools import cache, partial
from types import SimpleNamespace

import numpy as np
import torch
import trl
from freezing import freeze
from trl.experimental.gmpo import gmpo_trainer
from trl.trainer import grpo_trainer

torch.set_default_dtype(torch.float64)  # TRL makes some constants of the default type
VERSION = trl.__version__

tensor = partial(torch.tensor, dtype=torch.float64)


def frozen(case, run, **settings):
    """Freeze a case, unless the command line names others."""
    if not sys.argv[1:] or case in sys.argv[1:]:
        freeze("trl", VERSION, case, run, **settings)


def accelerator():
    """Of one process."""

    def same(x, *_, **__):
        return x

    return SimpleNamespace(
        num_processes=1,
        process_index=0,
        device="cpu",
        sync_gradients=True,
        gather=same,
        gather_for_metrics=same,
        reduce=same,
        pad_across_processes=same,
    )


def trainer(logp, entropy, **settings):
    """A stand-in with TRL's own defaults, unless `settings` says otherwise."""
    names = {
        "epsilon": 0.2,
        "delta": None,
        "use_bias_correction_kl": True,
        "steps_per_generation": 1,
        "sapo_temperature_pos": 1.0,
        "sapo_temperature_neg": 1.05,
        "vespo_k_pos": 2.0,
        "vespo_lambda_pos": 3.0,
        "vespo_k_neg": 3.0,
        "vespo_lambda_neg": 2.0,
    }
    made = SimpleNamespace(
        args=SimpleNamespace(**{k: settings.get(k, v) for k, v in names.items()}),
        accelerator=accelerator(),
        model=SimpleNamespace(training=True),
        _metrics={"train": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *_, **__: (logp, entropy, None),
        _entropy_bonus_enabled="entropy_coef" in settings,
        use_adaptive_entropy=False,
        entropy_coef=settings.get("entropy_coef", 0.0),
        aux_loss_enabled=False,
        beta=settings.get("beta", 0.0),
        epsilon_low=settings.get("epsilon", 0.2),
        epsilon_high=settings.get("epsilon_high", settings.get("epsilon", 0.2)),
        loss_type=settings.get("loss_type", "dapo"),
        importance_sampling_level=settings.get("importance_sampling_level", "token"),
        top_entropy_quantile=settings.get("top_entropy_quantile", 1.0),
        off_policy_mask_threshold=settings.get("off_policy_mask_threshold"),
        max_completion_length=settings.get("max_completion_length", 9),
        current_gradient_accumulation_steps=settings.get("gradient_accumulation_steps", 1),
        use_vllm="vllm_importance_sampling_mode" in settings,
        vllm_importance_sampling_correction=True,
        vllm_importance_sampling_mode=settings.get("vllm_importance_sampling_mode"),
        vllm_importance_sampling_clip_max=settings.get("vllm_importance_sampling_clip_max", 3.0),
        vllm_importance_sampling_clip_min=settings.get("vllm_importance_sampling_clip_min"),
        scale_rewards=settings.get("scale_rewards", "group"),
        multi_objective_aggregation=settings.get(
            "multi_objective_aggregation", "sum_then_normalize"
        ),
        normalize_advantages=settings.get("normalize_advantages", False),
        reward_clip_range=None,
    )
    made.get_off_policy_mask = grpo_trainer.GRPOTrainer.get_off_policy_mask
    made.get_gamma_weights = grpo_trainer.GRPOTrainer.get_gamma_weights
    made.get_high_entropy_mask = partial(grpo_trainer.GRPOTrainer.get_high_entropy_mask, made)
    return made


@cache
def excerpt(method, first, last):
    """A method's statements from the line that begins with `first` up to the one with `last`."""
    lines = inspect.getsource(inspect.unwrap(method)).splitlines()
    start = next(i for i, line in enumerate(lines) if line.strip().startswith(first))
    stop = next(i for i in range(start, len(lines)) if lines[i].strip().startswith(last))
    return compile(textwrap.dedent("\n".join(lines[start:stop])), method.__qualname__, "exec")


def run_excerpt(method, first, last, **names):
    """The names that TRL's own statements leave, in the namespace of their module."""
    space = {**inspect.unwrap(method).__globals__, **names}
    exec(excerpt(method, first, last), space)
    return space


def group_credit(batch, kind=grpo_trainer.GRPOTrainer, rewards=None, **settings):
    """TRL's credit of each row; groups of different sizes are given to it one by one."""
    rewards = tensor(batch.outcome if rewards is None else rewards).reshape(len(batch.group), -1)
    whole = (
        settings.get("scale_rewards") == "batch"
        or settings.get("multi_objective_aggregation") == "normalize_then_sum"
        or settings.get("normalize_advantages")
    )
    groups = [batch.group == g for g in np.unique(batch.group)]
    made = trainer(None, None, **{**settings, "beta": 0.0})
    made.reward_weights = torch.ones(rewards.shape[1])
    made.reward_funcs = [None] * rewards.shape[1]
    credit = torch.zeros(len(batch.group))
    for rows in [np.ones_like(groups[0])] if whole else groups:
        names = run_excerpt(
            kind._generate_and_score_completions,
            "unscorable_mask =",
            "# Slice to keep only the local part",
            self=made,
            device="cpu",
            rewards_per_func=rewards[rows].clone(),
            num_generations=int(groups[0].sum() if whole else rows.sum()),
        )
        credit[rows] = names["advantages"]
    return credit


def engine_ratio(batch, mask, **settings):
    """TRL's ratio of the update's policy to the sampling engine's."""
    names = run_excerpt(
        grpo_trainer.GRPOTrainer._generate_and_score_completions,
        "mask = completion_mask if tool_mask is None",
        "# Compute the per-token log probabilities for the reference model",
        self=trainer(None, None, **settings),
        completion_mask=mask,
        tool_mask=None,
        old_per_token_logps=tensor(batch.logp_old),
        sampling_per_token_logps=tensor(batch.logp_sampler),
    )
    return names["vllm_importance_sampling_ratio"]


def entropy32(batch):
    """TRL takes the quantile in float32: entropies that both precisions hold exactly."""
    return tensor(batch.entropy.astype(np.float32))


def inputs_of(batch, credit, rows=slice(None), **settings):
    count = len(batch.mask[rows])
    mask = torch.tensor(batch.mask[rows], dtype=torch.int64)
    made = {
        "prompt_ids": torch.zeros(count, 1, dtype=torch.int64),
        "prompt_mask": torch.ones(count, 1, dtype=torch.int64),
        "completion_ids": torch.zeros(mask.shape, dtype=torch.int64),
        "completion_mask": torch.tensor(batch.completion[rows], dtype=torch.int64),
        "tool_mask": mask,
        "advantages": credit[rows],
        "old_per_token_logps": tensor(batch.logp_old[rows]),
        "ref_per_token_logps": tensor(batch.logp_ref[rows]),
        "sampling_per_token_logps": tensor(batch.logp_sampler[rows]),
        "num_items_in_batch": torch.tensor(batch.mask.sum()),
    }
    if "vllm_importance_sampling_mode" in settings:
        whole = torch.tensor(batch.mask, dtype=torch.int64)
        made["importance_sampling_ratio"] = engine_ratio(batch, whole, **settings)[rows]
    if not settings.get("sampled_by_engine", True):
        del made["sampling_per_token_logps"]
    return made


def value_and_gradient(batch, credit, splits=1, method=None, **settings):
    """Of the loss summed over micro-batches, as gradient accumulation does."""
    method = method or grpo_trainer.GRPOTrainer._compute_loss
    logp = tensor(batch.logp).requires_grad_()
    total = 0.0
    for rows in np.split(np.arange(len(batch.mask)), splits):
        made = trainer(
            logp[rows],
            entropy32(batch)[rows],
            gradient_accumulation_steps=splits,
            **{"steps_per_generation": splits, **settings},
        )
        total = total + method(made, None, inputs_of(batch, credit, rows, **settings))
    total.backward()
    return {"loss": total.item(), "gradient": logp.grad.numpy()}


def per_token(batch, credit):
    return np.where(batch.mask, credit.numpy()[:, None], 0.0)


def policy(case, narrow=None, method=None, credit=None, **settings):
    credit = credit or (lambda batch: group_credit(batch, **settings))

    def run(batch):
        made = credit(batch)
        loss = value_and_gradient(batch, made, method=method, **settings)
        return {"advantage": per_token(batch, made), **loss}

    frozen(case, run, batches=narrow or {}, settings=settings)


def policies():
    kinds = ("grpo", "dr_grpo", "dapo", "cispo", "sapo", "vespo")
    extra = {
        "dapo": {"epsilon": 0.2, "epsilon_high": 0.28},
        "cispo": {"epsilon_high": 5.0},
        "dr_grpo": {"scale_rewards": "none", "max_completion_length": 12},
    }
    for kind in kinds:
        policy(kind, loss_type=kind, **extra.get(kind, {}))
    sequence = {"importance_sampling_level": "sequence"}
    policy("gspo", loss_type="grpo", epsilon=0.3, epsilon_high=0.4, **sequence)
    policy("luspo", loss_type="luspo", epsilon=0.3, epsilon_high=0.4, **sequence)
    policy("two_sided", loss_type="dapo", delta=1.5)
    policy(
        "entropy_top_quantile", loss_type="dapo", top_entropy_quantile=0.25, entropies="as float32"
    )
    policy("lite_ppo", {"group_size": 4}, loss_type="dapo", scale_rewards="batch")
    for name, corrected in (("kl", False), ("kl_corrected", True)):
        policy(name, loss_type="dapo", beta=0.3, use_bias_correction_kl=corrected)
    policy("kl_corrected_gspo", loss_type="grpo", beta=0.3, use_bias_correction_kl=True, **sequence)
    policy("opsm_engine", loss_type="dapo", off_policy_mask_threshold=0.1)
    policy("opsm_old", loss_type="dapo", off_policy_mask_threshold=0.1, sampled_by_engine=False)
    for mode in ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask"):
        policy(
            f"engine_{mode}",
            loss_type="dapo",
            vllm_importance_sampling_mode=mode,
            vllm_importance_sampling_clip_max=2.0,
            vllm_importance_sampling_clip_min=0.5,
        )
    policy(
        "vespo_engine",
        loss_type="vespo",
        vllm_importance_sampling_mode="token_truncate",
        vllm_importance_sampling_clip_max=3.0,
    )
    policy("gmpo", method=gmpo_trainer.GMPOTrainer._compute_loss, loss_type="grpo", epsilon=0.4)
    policy(
        "gdpo",
        {"group_size": 4, "empty": False},
        loss_type="dapo",
        credit=lambda b: group_credit(
            b, rewards=b.parts.sum(axis=2).T, multi_objective_aggregation="normalize_then_sum"
        ),
        multi_objective_aggregation="normalize_then_sum",
    )


def splits():
    """bnpo divides each micro-batch by its own tokens: the same rows give two losses."""

    def run(batch):
        credit = group_credit(batch)
        one = value_and_gradient(batch, credit, splits=1, loss_type="bnpo")
        two = value_and_gradient(batch, credit, splits=2, loss_type="bnpo")
        return {
            "advantage": per_token(batch, credit),
            **one,
            "loss_in_two": two["loss"],
            "gradient_in_two": two["gradient"],
        }

    frozen("bnpo", run, batches={}, settings={"loss_type": "bnpo", "splits": [1, 2]})


def entropy_bonus():
    """The bonus is a token mean, whatever the aggregation of the policy term."""
    settings = {"loss_type": "grpo", "entropy_coef": 0.1}

    def run(batch):
        credit = group_credit(batch)
        logp, entropy = tensor(batch.logp).requires_grad_(), entropy32(batch).requires_grad_()
        made = trainer(logp, entropy, **settings)
        loss = grpo_trainer.GRPOTrainer._compute_loss(made, None, inputs_of(batch, credit))
        loss.backward()
        return {
            "advantage": per_token(batch, credit),
            "loss": loss.item(),
            "gradient": logp.grad.numpy(),
            "entropy_gradient": entropy.grad.numpy(),
        }

    frozen("entropy_bonus", run, batches={}, settings={**settings, "entropies": "as float32"})


def main():
    policies()
    splits()
    entropy_bonus()


if __name__ == "__main__":
    main()
