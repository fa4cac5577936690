"""Freeze the losses of TRL 1.16.0's other trainers. In `freeze_trl.py`'s environment:

    cd tests/public && trl/bin/python freeze_trl_trainers.py [CASE ...]

RLOO, A*-PO, preferences, distillation, and the reward for overlong rows.
"""

from types import SimpleNamespace

import numpy as np
import torch
from freeze_trl import (
    entropy32,
    frozen,
    group_credit,
    inputs_of,
    per_token,
    run_excerpt,
    tensor,
    trainer,
)
from trl.experimental.a2po import a2po_trainer
from trl.experimental.gkd import gkd_trainer
from trl.experimental.iw_opd import iw_opd_trainer
from trl.experimental.sdpo import sdpo_trainer
from trl.rewards import get_soft_overlong_punishment
from trl.trainer import dpo_trainer, rloo_trainer


def rloo():
    """The ratio is of whole sequences, over the completion mask: there is no tool mask."""
    narrow = {"holes": False}

    def of(**settings):
        def run(batch):
            credit = group_credit(batch, kind=rloo_trainer.RLOOTrainer, **settings)
            logp, mask = tensor(batch.logp).requires_grad_(), tensor(batch.mask)
            inputs = inputs_of(batch, credit)
            inputs["completion_mask"] = inputs["tool_mask"]
            inputs["old_logps"] = (tensor(batch.logp_old) * mask).sum(1)
            made = trainer(logp, entropy32(batch), **settings)
            loss = rloo_trainer.RLOOTrainer._compute_loss(made, None, inputs)
            loss.backward()
            return {
                "advantage": per_token(batch, credit),
                "loss": loss.item(),
                "gradient": logp.grad.numpy(),
            }

        return run

    frozen("rloo", of(), batches=narrow, settings={"epsilon": 0.2})
    whitened = {"epsilon": 0.2, "normalize_advantages": True}
    frozen(
        "rloo_normalised", of(**whitened), batches={**narrow, "group_size": 4}, settings=whitened
    )


def a2po():
    settings = {"beta1": 0.5, "beta2": 0.1}

    def run(batch):
        rewards = tensor(batch.reference_rewards)
        names = run_excerpt(
            a2po_trainer.A2POTrainer._estimate_optimal_values,
            "v_star =",
            "for j, prompt_text",
            rewards=rewards,
            n=rewards.shape[1],
            beta1=settings["beta1"],
        )
        logp, mask = tensor(batch.logp).requires_grad_(), tensor(batch.mask)
        made = trainer(None, None)
        made.args.beta2 = settings["beta2"]
        made._get_sequence_logps = lambda *_: (logp * mask).sum(1)
        inputs = {
            "input_ids": None,
            "attention_mask": None,
            "logits_to_keep": None,
            "ref_logps": (tensor(batch.logp_ref) * mask).sum(1),
            "rewards": tensor(batch.outcome),
            "v_star": names["v_star"],
        }
        loss = a2po_trainer.A2POTrainer.compute_loss(made, None, inputs)
        loss.backward()
        return {
            "optimal_value": per_token(batch, names["v_star"]),
            "loss": loss.item(),
            "gradient": logp.grad.numpy(),
        }

    frozen("a2po", run, batches={}, settings=settings)


def preferences():
    """Row i of the first four is chosen over row i + 4."""

    def model(logp):
        def forward(*_, labels, **__):
            padded = torch.cat([torch.zeros(len(logp), 1), logp], dim=1)
            told = torch.where(labels != -100, padded, 0)  # what its fused head says off the mask
            none = torch.zeros_like(told)
            return SimpleNamespace(
                log_probs=told, entropy=none, mean_logits=none, is_top1=none.bool()
            )

        return forward

    def of(loss, beta):
        def run(batch):
            logp = tensor(batch.logp).requires_grad_()
            made = trainer(None, None, beta=beta)
            vars(made).update(
                ref_model=model(tensor(batch.logp_ref)),
                precompute_ref_logps=False,
                ld_alpha=None,
                f_divergence_type="reverse_kl",
                loss_types=[loss],
                loss_weights=[1.0],
                use_weighting=False,
                _total_train_tokens=0,
                _tp_size=1,
            )
            made.args.gradient_checkpointing_kwargs = None
            made.model.is_gradient_checkpointing = False
            mask = torch.tensor(np.pad(batch.mask, ((0, 0), (1, 0))), dtype=torch.int64)
            inputs = {"input_ids": mask * 0, "attention_mask": mask, "completion_mask": mask}
            made_loss = dpo_trainer.DPOTrainer._compute_loss(made, model(logp), inputs, False)
            made_loss.backward()
            return {"loss": made_loss.item(), "gradient": logp.grad.numpy()}

        return run

    for name, loss, beta in (("dpo", "sigmoid", 0.1), ("ipo", "ipo", 0.5)):
        frozen(
            name,
            of(loss, beta),
            batches={},
            settings={"loss_type": loss, "beta": beta, "pairs": "row i over row i + 4"},
        )


def divergences():
    """On full logits; `temperature` 1."""

    def gkd(beta):
        def run(batch):
            student = tensor(batch.student).requires_grad_()
            labels = torch.tensor(np.where(batch.mask, batch.token, -100))
            loss = gkd_trainer.GKDTrainer.generalized_jsd_loss(
                student, tensor(batch.teacher), labels=labels, beta=beta
            )
            loss.backward()
            return {"loss": loss.item(), "gradient": student.grad.numpy()}

        return run

    def sdpo(**settings):
        def run(batch):
            student = tensor(batch.student).requires_grad_()
            made = trainer(None, None)
            made.args = SimpleNamespace(distillation_is_clip=None, **settings)
            made._log_self_distillation_metric = lambda *_: None
            given = SimpleNamespace(
                student_logits=student,
                teacher_logits=tensor(batch.teacher),
                completion_ids=torch.tensor(batch.token),
                loss_mask=torch.tensor(batch.mask, dtype=torch.int64),
            )
            loss = sdpo_trainer.SDPOTrainer._compute_self_distillation_loss(
                made, made.model, {}, given
            )
            loss.backward()
            return {"loss": loss.item(), "gradient": student.grad.numpy()}

        return run

    for beta in (0.0, 0.1, 0.5, 0.9, 1.0):
        frozen(f"gkd_{beta:g}", gkd(beta), batches={"logits": True}, settings={"beta": beta})
    kinds = {
        "sampled": {"distillation_mode": "sampled_token", "distillation_alpha": 1.0},
        "full": {"distillation_mode": "full_logits", "distillation_alpha": 0.5},
        "topk": {
            "distillation_mode": "topk_logits",
            "distillation_topk": 3,
            "distillation_alpha": 1.0,
            "distillation_add_tail": True,
        },
    }
    for name, settings in kinds.items():
        frozen(f"sdpo_{name}", sdpo(**settings), batches={"logits": True}, settings=settings)


def iw_opd():
    """Two tokens make a vocabulary in which the sampled one has the batch's log-probability."""
    settings = {"iw_opd_gamma": 0.5, "iw_opd_epsilon": 1e-8, "rollout_logprobs": "logp_sampler"}

    def run(batch):
        logp, mask = tensor(batch.logp).requires_grad_(), torch.tensor(batch.mask)
        made = trainer(None, None)
        vars(made).update(temperature=1.0, iw_opd_gamma=0.5, iw_opd_epsilon=1e-8)
        token = torch.zeros(mask.shape, dtype=torch.int64)
        loss = iw_opd_trainer.IWOPDTrainer._compute_iw_opd_loss(
            made,
            torch.stack([logp, torch.log(-torch.expm1(logp))], dim=-1),
            token,
            torch.where(mask, token, -100),
            tensor(batch.logp_teacher),
            rollout_logprobs=tensor(batch.logp_sampler),
        )
        loss.backward()
        return {"loss": loss.item(), "gradient": logp.grad.numpy()}

    frozen("iw_opd", run, batches={}, settings=settings)


def overlong():
    """The punishment of each row, repeated over its tokens."""
    settings = {"max_completion_len": 7, "soft_punish_cache": 3}
    punish = get_soft_overlong_punishment(**settings)

    def run(batch):
        rewards = punish([[0] * int(n) for n in batch.length])
        return {"reward": per_token(batch, tensor(rewards))}

    frozen("soft_overlong", run, batches={"holes": False, "empty": False}, settings=settings)


def main():
    for group in (rloo, a2po, preferences, divergences, iw_opd, overlong):
        group()


if __name__ == "__main__":
    main()
