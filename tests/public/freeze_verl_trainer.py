"""Freeze what verl 0.9.1's trainers wrap around its losses. In `freeze_verl.py`'s environment:

    uv pip install --python verl transformers datasets torchdata pillow peft \
        cachetools uvicorn fastapi
    cd tests/public && verl/bin/python freeze_verl_trainer.py [CASE ...]

KL in the reward, the critic's loss, the actor's whole loss and distillation. verl imports the
packages above beside these functions; none of them is used.
"""

from types import SimpleNamespace

import numpy as np
import torch
from freeze_verl import NO_SINGLE, actor, loss_of, tensor
from freeze_verl_more import GIVEN, SEQUENCE, TOKEN, frozen, group_credit, on_mask
from tensordict import TensorDict
from verl.protocol import DataProto
from verl.trainer.distillation import losses as distillation
from verl.trainer.distillation.fsdp.losses import compute_forward_kl_topk
from verl.trainer.ppo import core_algos as core
from verl.trainer.ppo.ray_trainer import apply_kl_penalty
from verl.workers.config import DistillationConfig
from verl.workers.config.distillation import DistillationLossConfig
from verl.workers.utils.losses import ppo_loss


def in_reward():
    """KL in the reward, its coefficient steered from batch to batch, and GAE on what is left."""
    settings = {"kl_coef": 0.2, "target_kl": 0.1, "horizon": 100, "gamma": 0.95, "lam": 0.9}

    def of(kind):
        steered = core.get_kl_controller(SimpleNamespace(type="adaptive", **settings))

        def run(batch):
            mask = tensor(batch.mask)
            coefficient = steered.value
            data = DataProto.from_dict(
                tensors={
                    "response_mask": mask,
                    "token_level_scores": tensor(batch.reward),
                    "old_log_probs": tensor(batch.logp_old),
                    "ref_log_prob": tensor(batch.logp_ref),
                }
            )
            data, metrics = apply_kl_penalty(data, steered, kind)
            rewards = data.batch["token_level_rewards"]
            credit, _ = core.compute_gae_advantage_return(
                rewards, tensor(batch.value_old), mask, settings["gamma"], settings["lam"]
            )
            credit = on_mask(batch, credit)
            made = loss_of("vanilla", batch, credit, TOKEN, actor(**GIVEN))
            return {
                "reward": rewards.numpy(),
                "advantage": credit.numpy(),
                **made,
                "kl": metrics["actor/reward_kl_penalty"],
                "coefficient": coefficient,
                "next_coefficient": steered.value,
            }

        return run

    for kind in ("k1", "k3"):
        frozen(
            f"in_reward_{kind}",
            of(kind),
            estimator="gae",
            loss="vanilla",
            aggregation=TOKEN,
            batches={"empty": False},
            settings={**GIVEN, **settings, "kl_penalty": kind},
        )


def critics():
    """The clipped value loss under two means."""

    def of(agg, clip):
        def run(batch):
            value = tensor(batch.value).requires_grad_()
            returns = core.compute_gae_advantage_return(
                tensor(batch.reward), tensor(batch.value_old), tensor(batch.mask), 1.0, 0.95
            )[1]
            loss, _ = core.compute_value_loss(
                value, returns, tensor(batch.value_old), tensor(batch.mask), clip, agg
            )
            loss.backward()
            return {
                "returns": returns.numpy(),
                "value_loss": loss.item(),
                "value_gradient": value.grad.numpy(),
            }

        return run

    for name, agg, clip in (("value_token_mean", TOKEN, 0.2), ("value_sequence", SEQUENCE, 0.5)):
        frozen(
            name,
            of(agg, clip),
            aggregation=agg,
            batches={"empty": False},
            settings={"cliprange_value": clip, "gamma": 1.0, "lam": 0.95},
        )


def unpadded(batch, column):
    """verl's unpadded output: a prompt of one token, each value one place before its token."""
    lengths = batch.completion.sum(axis=1)
    ends = column.new_zeros(1)
    return torch.cat([torch.cat([column[n, :end], ends]) for n, end in enumerate(lengths)])


def training_data(batch, **tensors):
    shape = batch.mask.shape
    attention = np.pad(batch.completion, ((0, 0), (1, 0)), constant_values=True)
    data = TensorDict(
        {
            "prompts": torch.zeros(shape[0], 1, dtype=torch.long),
            "responses": torch.zeros(shape, dtype=torch.long),
            "attention_mask": torch.tensor(attention, dtype=torch.long),
            "response_mask": torch.tensor(batch.mask, dtype=torch.long),
            "old_log_probs": tensor(batch.logp_old),
            **tensors,
        },
        batch_size=[shape[0]],
    )
    for name, value in {"dp_size": 1, "batch_num_tokens": None, "global_batch_size": None}.items():
        data.set_non_tensor(name, value)
    return data


def whole_loss():
    """The actor's own sum of policy loss, entropy bonus and KL penalty."""

    def of(agg, **settings):
        def run(batch):
            config = actor(**GIVEN, **settings, loss_agg_mode=agg, use_kl_loss=True)
            credit = group_credit(batch)
            logp = tensor(batch.logp).requires_grad_()
            entropy = tensor(batch.entropy).requires_grad_()
            data = training_data(batch, advantages=credit, ref_log_prob=tensor(batch.logp_ref))
            output = {"log_probs": unpadded(batch, logp), "entropy": unpadded(batch, entropy)}
            loss, _ = ppo_loss(config, output, data)
            loss.backward()
            return {
                "advantage": credit.numpy(),
                "loss": loss.item(),
                "gradient": logp.grad.numpy(),
                "entropy_gradient": entropy.grad.numpy(),
            }

        return run

    settings = {"entropy_coeff": 0.01, "kl_loss_coef": 0.3}
    for name, agg, kind in (("actor_k3", SEQUENCE, "low_var_kl"), ("actor_k2", TOKEN, "k2")):
        made = {**settings, "kl_loss_type": kind}
        frozen(
            name,
            of(agg, **made),
            estimator="grpo",
            loss="workers.utils.losses.ppo_loss",
            aggregation=agg,
            batches=NO_SINGLE,
            settings={**GIVEN, **made},
        )


def distillations():
    """The teacher's term: as a detached credit, or differentiated directly."""

    def of(**settings):
        def run(batch):
            config = DistillationConfig(distillation_loss=DistillationLossConfig(**settings))
            logp = tensor(batch.logp).requires_grad_()
            data = training_data(batch)
            data["teacher_logprobs"] = torch.zeros(len(batch.mask))
            teacher = unpadded(batch, tensor(batch.logp_teacher)).unsqueeze(-1)
            given = _Teacher(data, teacher)
            loss, _ = distillation.distillation_loss(
                actor(**GIVEN), config, {"log_probs": unpadded(batch, logp)}, given
            )
            loss.backward()
            return {"loss": loss.item(), "gradient": logp.grad.numpy()}

        return run

    kinds = {
        "opd": {"loss_mode": "k1", "use_policy_gradient": True},
        "distil_k3": {"loss_mode": "k3", "use_policy_gradient": False},
        "distil_k2": {"loss_mode": "k2", "use_policy_gradient": False},
    }
    for name, settings in kinds.items():
        made = {**settings, "loss_max_clamp": 10.0, "clip_ratio": 0.2}
        frozen(name, of(**made), loss="distillation_loss", aggregation=TOKEN, settings=made)


class _Teacher:
    """A record whose teacher column is unpadded while the others are padded."""

    def __init__(self, data, teacher):
        self.data, self.teacher = data, teacher

    def __getitem__(self, name):
        return self.teacher if name == "teacher_logprobs" else self.data[name]

    def __getattr__(self, name):
        return getattr(self.data, name)


def topk():
    """Forward KL over the teacher's three likeliest tokens, cut at 0 per token. In float32."""
    count = 3
    config = DistillationConfig(
        distillation_loss=DistillationLossConfig(
            loss_mode="forward_kl_topk",
            topk=count,
            log_prob_min_clamp=None,
            use_policy_gradient=False,
        )
    )

    def run(batch):
        student = tensor(batch.student).requires_grad_()
        best = torch.log_softmax(tensor(batch.teacher), -1).topk(count, dim=-1)

        def jagged(x):
            return torch.nested.nested_tensor(list(x), layout=torch.jagged)

        made = compute_forward_kl_topk(
            student.reshape(1, -1, student.shape[-1]),
            jagged(best.values),
            jagged(best.indices),
            config,
            "thd",
        )
        matrix = made["distillation_losses"].clamp_min(0.0).reshape(batch.mask.shape)
        loss = core.agg_loss(matrix, tensor(batch.mask), TOKEN)
        loss.backward()
        return {"loss": loss.item(), "gradient": student.grad.numpy()}

    frozen(
        "forward_kl_topk",
        run,
        batches={"logits": True},
        aggregation=TOKEN,
        precision="float32",
        settings={"topk": count, "log_prob_min_clamp": None},
    )


def main():
    for group in (in_reward, critics, whole_loss, distillations, topk):
        group()


if __name__ == "__main__":
    main()
