"""Freeze what verl 0.9.1 does about a sampler that differs from the trainer: weights and masks.

In `freeze_verl.py`'s environment:

    cd tests/public && verl/bin/python freeze_verl_sampler.py [CASE ...]
"""

from freeze_verl import NO_SINGLE, actor, loss_of, tensor
from freeze_verl_more import (
    GIVEN,
    SEQUENCE,
    TOKEN,
    frozen,
    gradient_of,
    group_credit,
    on_mask,
)
from verl.trainer.config import RolloutCorrectionConfig
from verl.trainer.ppo import core_algos as core
from verl.trainer.ppo import rollout_corr_helper as corr


def bypass():
    """Losses whose old policy is the sampler, and plain REINFORCE."""

    def of(agg, **correction):
        config = actor(
            **GIVEN, policy_loss={"rollout_correction": RolloutCorrectionConfig(**correction)}
        )

        def run(batch):
            credit = group_credit(batch)
            made = loss_of("bypass_mode", batch, credit, agg, config, old=batch.logp_sampler)
            return {"advantage": credit.numpy(), **made}

        return run

    def reinforce(batch):
        credit = group_credit(batch)

        def value(logp):
            return core.compute_policy_loss_reinforce(
                tensor(batch.logp_sampler),
                logp,
                credit,
                tensor(batch.mask),
                "seq-mean-token-sum",
                actor(),
            )[0]

        return {"advantage": credit.numpy(), **gradient_of(batch, value)}

    cases = {
        "bypass_clip": (TOKEN, {"loss_type": "ppo_clip", "rollout_is": None}),
        "bypass_clip_rejected": (
            SEQUENCE,
            {
                "loss_type": "ppo_clip",
                "rollout_is": None,
                "rollout_rs": "seq_mean_k1",
                "rollout_rs_threshold": "0.2_5.0",
            },
        ),
        "bypass_reinforce": (TOKEN, {"loss_type": "reinforce", "rollout_is": None}),
        "bypass_reinforce_token": (
            "seq-mean-token-sum",
            {"loss_type": "reinforce", "rollout_is": "token", "rollout_is_threshold": 2.0},
        ),
        "bypass_reinforce_sequence": (
            "seq-mean-token-sum",
            {"loss_type": "reinforce", "rollout_is": "sequence", "rollout_is_threshold": 2.0},
        ),
    }
    for name, (agg, correction) in cases.items():
        frozen(
            name,
            of(agg, **correction),
            estimator="grpo",
            loss="bypass_mode",
            aggregation=agg,
            batches=NO_SINGLE,
            settings={**GIVEN, **correction, "old": "logp_sampler"},
        )
    frozen(
        "reinforce",
        reinforce,
        estimator="grpo",
        loss="compute_policy_loss_reinforce",
        aggregation="seq-mean-token-sum",
        batches=NO_SINGLE,
        settings={},
    )


def corrections():
    """Weights and masks of old against sampler, under the vanilla loss."""
    config = actor(**GIVEN)

    def of(**correction):
        def run(batch):
            credit, mask = group_credit(batch), tensor(batch.mask)
            proto, kept, _ = corr.compute_rollout_correction_and_rejection_mask(
                on_mask(batch, tensor(batch.logp_old)),
                on_mask(batch, tensor(batch.logp_sampler)),
                mask,
                **correction,
            )
            weights = proto.batch["rollout_is_weights"] if proto else None

            def value(logp):
                return core.compute_policy_loss_vanilla(
                    tensor(batch.logp_old), logp, credit, kept, TOKEN, config, weights
                )[0]

            return {"kept": kept.numpy(), **gradient_of(batch, value)}

        return run

    plain = {
        "tis_sequence_normalised": {
            "rollout_is": "sequence",
            "rollout_is_threshold": 2.0,
            "rollout_is_batch_normalize": True,
        },
        "icepop_sequence": {"rollout_is": "sequence", "rollout_is_threshold": "0.1_10.0"},
        "tis_and_rejection": {
            "rollout_is": "token",
            "rollout_is_threshold": 2.0,
            "rollout_rs": "seq_mean_k3,token_k1",
            "rollout_rs_threshold": "0.5,0.4_2.5",
        },
    }
    bounds = {
        "token_k1": "0.5_1.5",
        "token_k2": 0.2,
        "token_k3": 0.2,
        "seq_sum_k1": "0.1_8.0",
        "seq_sum_k2": 2.0,
        "seq_sum_k3": 4.0,
        "seq_mean_k1": "0.5_1.8",
        "seq_mean_k2": 0.4,
        "seq_mean_k3": 1.0,
        "seq_max_k2": 0.8,
        "seq_max_k3": 1.2,
    }
    rejected = {
        f"reject_{name}": {"rollout_rs": name, "rollout_rs_threshold": bound}
        for name, bound in bounds.items()
    }
    for name, correction in {**plain, **rejected}.items():
        frozen(
            name,
            of(**correction),
            estimator="grpo",
            loss="vanilla",
            aggregation=TOKEN,
            batches=NO_SINGLE,
            settings={**GIVEN, **correction},
        )


def main():
    bypass()
    corrections()


if __name__ == "__main__":
    main()
