"""Freeze more of TRL 1.16.0: online preferences and distillation across vocabularies.

In `freeze_trl.py`'s environment: `cd tests/public && trl/bin/python freeze_trl_more.py [CASE ...]`.
"""

from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import torch
from batches import VOCAB, byte_ends
from freeze_trl import accelerator, frozen, tensor
from trl.experimental.gold.gold_trainer import ULDLoss
from trl.experimental.online_dpo.online_dpo_trainer import OnlineDPOTrainer

BOTH = 4  # words that the two vocabularies share


def online_trainer(loss_type, beta, logps, mask, rewards):
    """A stand-in whose two models answer with the batch's columns, already generated."""
    made = SimpleNamespace(
        args=SimpleNamespace(
            use_vllm=False,
            missing_eos_penalty=None,
            loss_type=loss_type,
            torch_empty_cache_steps=None,
            optim=None,
            n_gpu=1,
            gradient_accumulation_steps=1,
        ),
        beta=beta,
        eos_token_ids=[0],
        ref_model="reference",
        reward_funcs=[None],
        stats=defaultdict(list),
        accelerator=accelerator(),
        processing_class=SimpleNamespace(batch_decode=lambda ids, **_: [""] * len(ids)),
    )
    made.accelerator.backward = lambda loss: loss.backward()
    made._generate = lambda *_: (None, None, torch.zeros(mask.shape).long(), mask, None)
    made._forward = lambda model, *_: logps["reference" if model == "reference" else "policy"]
    made._calculate_rewards_from_functions = lambda **_: rewards
    return made


def online():
    """Groups of two: the row with the larger reward is chosen, the earlier one where they tie."""
    order = np.r_[0:8:2, 1:8:2]  # TRL wants first answers, then second answers

    def of(loss_type, beta):
        def run(batch):
            logp = tensor(batch.logp).requires_grad_()
            logps = {"policy": logp[order], "reference": tensor(batch.logp_ref[order])}
            mask = torch.tensor(batch.mask[order], dtype=torch.int64)
            rewards = tensor(batch.outcome[order])
            made = online_trainer(loss_type, beta, logps, mask, rewards)
            model = SimpleNamespace(train=lambda: None)
            loss = OnlineDPOTrainer.training_step(made, model, {"prompt": [""] * (len(order) // 2)})
            return {"loss": loss.item(), "gradient": logp.grad.numpy()}

        return run

    for name, loss_type, beta in (("online_dpo", "sigmoid", 0.1), ("online_ipo", "ipo", 0.5)):
        frozen(
            name,
            of(loss_type, beta),
            batches={"group_size": 2},
            settings={"loss_type": loss_type, "beta": beta},
        )


def words(own):
    """A tokenizer of `VOCAB` words, of which the first are shared."""
    names = [f"both{i}" if i < BOTH else f"{own}{i}" for i in range(VOCAB)]
    return SimpleNamespace(get_vocab=lambda: {name: i for i, name in enumerate(names)})


def across(aligned, **settings):
    """TRL's loss of the student's and the teacher's logits, with a token before the answer."""
    defaults = {
        "uld_crossentropy_weight": 0.0,
        "uld_distillation_weight": 1.0,
        "uld_student_temperature": 1.0,
        "uld_teacher_temperature": 1.0,
        "uld_skip_student_eos": False,
        "uld_skip_teacher_eos": False,
        "use_extended_uld": True,
        "uld_token_merge_strategy": "bayesian",
        "uld_use_hybrid_loss": False,
    }
    loss_of = ULDLoss(
        SimpleNamespace(**{**defaults, **settings}), words("student"), words("teacher")
    )

    def run(batch):
        student_end, teacher_end = byte_ends(batch.seed, batch.mask)
        student = tensor(batch.student).requires_grad_()
        labels = torch.tensor(np.where(batch.mask, batch.token, -100))
        labels = torch.nn.functional.pad(labels, (1, 0), value=-100)
        ids = torch.nn.functional.pad(torch.tensor(batch.token), (1, 0))
        ends = (student_end, student_end if aligned else teacher_end)
        offsets = [torch.tensor(np.stack([e * 0, e], -1)) for e in ends]
        offsets = [torch.nn.functional.pad(o, (0, 0, 1, 0)) for o in offsets]
        after = (0, 0, 0, 1)  # the logits of position t predict token t + 1
        loss = loss_of(
            torch.nn.functional.pad(student, after),
            torch.nn.functional.pad(tensor(batch.teacher), after),
            labels,
            labels,
            ids,
            ids,
            *offsets,
        )
        loss.backward()
        return {"loss": loss.item(), "gradient": student.grad.numpy()}

    return run


def vocabularies():
    """Distances of sorted probabilities: token by token, over spans, and beside a shared part."""
    hybrid = {
        "uld_use_hybrid_loss": True,
        "uld_hybrid_matched_weight": 0.6,
        "uld_hybrid_unmatched_weight": 0.4,
        "beta": 0.5,
    }
    kinds = {"uld": (True, {}), "uld_spans": (False, {}), "uld_hybrid": (True, hybrid)}
    for name, (aligned, settings) in kinds.items():
        frozen(
            name,
            across(aligned, **settings),
            batches={"logits": True},
            settings={
                **settings,
                "uld_token_merge_strategy": "bayesian",
                "spans": "one token each" if aligned else "by byte_ends(seed, mask)",
                "shared_words": BOTH,
            },
        )


def main():
    online()
    vocabularies()


if __name__ == "__main__":
    main()
