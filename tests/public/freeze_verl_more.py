"""Freeze the rest of verl 0.9.1: what `freeze_verl.py` leaves out. In the same environment:

    cd tests/public && verl/bin/python freeze_verl_more.py [CASE ...]

The trainers' own wrappers (KL in reward, the actor's whole loss, distillation) are imported from
modules that also need `transformers datasets torchdata pillow peft cachetools uvicorn fastapi`.
"""

import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import torch
import verl
from freeze_verl import NO_SINGLE, actor, advantage, loss_of, tensor
from freezing import freeze
from tensordict import TensorDict
from verl.protocol import DataProto
from verl.trainer.config import AlgoConfig, RolloutCorrectionConfig
from verl.trainer.distillation import losses as distillation
from verl.trainer.distillation.fsdp.losses import compute_forward_kl_topk
from verl.trainer.ppo import core_algos as core
from verl.trainer.ppo import rollout_corr_helper as corr
from verl.trainer.ppo.ray_trainer import apply_kl_penalty
from verl.workers.config import DistillationConfig
from verl.workers.config.distillation import DistillationLossConfig
from verl.workers.utils.losses import ppo_loss

F64 = torch.float64
GIVEN = {"clip_ratio": 0.2, "clip_ratio_low": 0.2, "clip_ratio_high": 0.2, "clip_ratio_c": 3.0}
TOKEN, SEQUENCE = "token-mean", "seq-mean-token-mean"


def frozen(case, run, **settings):
    """Freeze a case, unless the command line names others."""
    if not sys.argv[1:] or case in sys.argv[1:]:
        freeze("verl", verl.__version__, case, run, **settings)


def on_mask(batch, credit):
    return torch.where(tensor(batch.mask) > 0, credit.to(F64), 0)


def group_credit(batch):
    return on_mask(batch, advantage("grpo", batch)[0])


def gradient_of(batch, value_of):
    """Value and gradient of a function of the current log-probabilities."""
    logp = tensor(batch.logp).requires_grad_()
    value = value_of(logp)
    value.backward()
    return {"loss": value.item(), "gradient": logp.grad.numpy()}


def estimators():
    """Advantage estimators with verl's vanilla loss on top, by token mean."""

    def of(name, **extra):
        def run(batch):
            made = {k: f(batch) if callable(f) else f for k, f in extra.items()}
            credit = on_mask(batch, advantage(name, batch, **made)[0])
            loss = loss_of("vanilla", batch, credit, TOKEN, actor(**GIVEN))
            return {"advantage": credit.numpy(), **loss}

        return run

    case = partial(frozen, loss="vanilla", aggregation=TOKEN)
    # A group of one keeps its reward: mean 0 and deviation 1.
    case("grpo_singletons", of("grpo"), estimator="grpo", settings=GIVEN)
    case("rloo_loop", of("rloo"), estimator="rloo", settings=GIVEN)
    case("grpo_vectorized", of("grpo_vectorized"), estimator="grpo_vectorized", settings=GIVEN,
         batches=NO_SINGLE, precision="float32")
    raw = AlgoConfig(norm_adv_by_std_in_grpo=False)
    case("passk_unscaled", of("grpo_passk", config=raw), estimator="grpo_passk", batches=NO_SINGLE,
         settings={**GIVEN, "norm_adv_by_std_in_grpo": False})
    columns = {
        "old_log_probs": lambda b: tensor(b.logp_old),
        "sum_pi_squared": lambda b: tensor(b.sum_prob_sq),
    }
    weights = {"rollout_is_weights": lambda b: tensor(is_weights(b))}
    case("otb_holes", of("optimal_token_baseline", **columns), estimator="optimal_token_baseline",
         settings=GIVEN, batches={**NO_SINGLE, "holes": True, "empty": False})
    for name, extra in (("otb_tail", {"handle_zero_tail": False}), ("otb_weighted", weights)):
        told = {k: "token TIS at 2" if callable(v) else v for k, v in extra.items()}
        case(name, of("optimal_token_baseline", **columns, **extra), settings={**GIVEN, **told},
             estimator="optimal_token_baseline",
             batches={**NO_SINGLE, "holes": False, "empty": False})


def is_weights(batch):
    """verl's token weights to the sampler, truncated at 2."""
    log_ratio = on_mask(batch, tensor(batch.logp_old - batch.logp_sampler))
    return corr.compute_rollout_correction_weights(log_ratio, tensor(batch.mask), "token", 2.0)[0]


def gdpo():
    """Each part alone in its group, their weighted sum whitened over tokens; all in float32."""
    weights = [1.0, 0.5]
    config = AlgoConfig(gdpo_reward_keys=["first", "second"], gdpo_reward_weights=weights)

    def run(batch):
        total = batch.parts.sum(axis=2)
        attention = torch.tensor(np.pad(batch.completion, ((0, 0), (1, 0)), constant_values=True))
        credit = core.compute_gdpo_outcome_advantage(
            tensor(batch.parts.sum(axis=0)), tensor(batch.mask), batch.group, config=config,
            non_tensor_batch={"first": total[0], "second": total[1]},
            batch={"prompts": torch.zeros(len(total[0]), 1), "attention_mask": attention.long()},
        )[0]
        credit = on_mask(batch, credit)
        loss = loss_of("vanilla", batch, credit, TOKEN, actor(**GIVEN))
        return {"advantage": credit.numpy(), **loss}

    frozen("gdpo", run, estimator="gdpo", loss="vanilla", aggregation=TOKEN, batches=NO_SINGLE,
           precision="float32", settings={**GIVEN, "rewards": "parts", "weights": weights})


def losses():
    """Policy losses on verl's group credit."""

    def of(name, agg, credit=group_credit, **settings):
        config = actor(**settings)

        def run(batch):
            made = credit(batch)
            return {"advantage": made.numpy(), **loss_of(name, batch, made, agg, config)}

        return run

    def case(name, loss, agg=TOKEN, narrow=NO_SINGLE, estimator="grpo", **settings):
        credit = group_credit if estimator == "grpo" else (
            lambda b: on_mask(b, advantage(estimator, b)[0])
        )
        frozen(name, of(loss, agg, credit, **settings), estimator=estimator, loss=loss,
               aggregation=agg, batches=narrow, settings=settings)

    case("gpg", "gpg", estimator="gpg")  # a factor of rows over rows with a reward that is not 0
    case("grpo_one_sided", "vanilla", clip_ratio_c=1e9)  # no dual clip
    case("grpo_dual_clip", "vanilla", clip_ratio_low=0.1, clip_ratio_high=0.3, clip_ratio_c=1.5)
    case("grpo_scaled", "vanilla", "seq-mean-token-sum-norm",
         global_batch_info={"loss_scale_factor": 16})
    case("gspo_paper", "gspo", SEQUENCE, clip_ratio_low=3e-4, clip_ratio_high=4e-4)
    case("gspo_token_mean", "gspo", TOKEN, clip_ratio_low=0.3, clip_ratio_high=0.4)
    case("sapo_temperatures", "sapo", SEQUENCE, tau_pos=0.7, tau_neg=2.0)
    case("dppo_tv_cap", "dppo_tv", clip_ratio_low=0.1, clip_ratio_high=0.2, clip_ratio_c=20.0)
    case("dppo_kl_cap", "dppo_kl", clip_ratio_low=0.02, clip_ratio_high=0.1, clip_ratio_c=20.0)
    # verl's mean is over every row, an empty one too.
    case("gmpo_empty_rows", "geo_mean", clip_ratio_low=0.4, clip_ratio_high=0.4,
         narrow={**NO_SINGLE, "empty": True})


def micro_batches():
    """Two halves with the whole batch's counts, and with their own."""
    halves = (slice(0, 4), slice(4, 8))

    def of(agg, shared):
        def run(batch):
            credit, mask = group_credit(batch), tensor(batch.mask)
            counts = {"batch_num_tokens": int(mask.sum()), "dp_size": 1,
                      "global_batch_size": int((mask.sum(1) > 0).sum())}

            def value(logp):
                matrix = -credit * torch.exp(logp - tensor(batch.logp_old))
                made = [
                    core.agg_loss(matrix[half], mask[half], agg, **(counts if shared else {}))
                    for half in halves
                ]
                return sum(made) if shared else sum(made) / len(made)

            return {"advantage": credit.numpy(), **gradient_of(batch, value)}

        return run

    for name, agg in (("token_mean", TOKEN), ("sequence_mean", SEQUENCE)):
        for shared in (True, False):
            told = "the batch's counts, summed" if shared else "their own counts, averaged"
            suffix = "" if shared else "_local"
            frozen(f"halves_{name}{suffix}", of(agg, shared), aggregation=agg,
                   batches={**NO_SINGLE, "empty": False},
                   settings={"loss": "-A r, no clip", "halves": told})


def covariances():
    """clip_cov; `zeroed` is the flat index of the one token that chance took, or -1."""

    def of(**policy_loss):
        config = actor(**GIVEN, policy_loss=policy_loss)

        def run(batch):
            torch.manual_seed(batch.seed)
            credit = group_credit(batch).requires_grad_()
            made = loss_of("clip_cov", batch, credit, TOKEN, config)
            gone = np.flatnonzero((credit.grad.numpy() == 0) & batch.mask)
            zeroed = {} if policy_loss["clip_cov_ratio"] == 1.0 else {
                "zeroed": gone[0] if len(gone) else -1
            }
            return {"advantage": credit.detach().numpy(), **made, **zeroed}

        return run

    band = {"clip_cov_lb": 0.3, "clip_cov_ub": 5.0}
    for name, ratio in (("clip_cov_all", 1.0), ("clip_cov_one", 0.0002)):
        settings = {"clip_cov_ratio": ratio, **band}
        frozen(name, of(**settings), estimator="grpo", loss="clip_cov", aggregation=TOKEN,
               batches=NO_SINGLE, settings={**GIVEN, **settings})


def bypass():
    """Losses whose old policy is the sampler, and plain REINFORCE."""

    def of(agg, **correction):
        config = actor(**GIVEN, policy_loss={
            "rollout_correction": RolloutCorrectionConfig(**correction)
        })

        def run(batch):
            credit = group_credit(batch)
            made = loss_of("bypass_mode", batch, credit, agg, config, old=batch.logp_sampler)
            return {"advantage": credit.numpy(), **made}

        return run

    def reinforce(batch):
        credit = group_credit(batch)

        def value(logp):
            return core.compute_policy_loss_reinforce(
                tensor(batch.logp_sampler), logp, credit, tensor(batch.mask),
                "seq-mean-token-sum", actor(),
            )[0]

        return {"advantage": credit.numpy(), **gradient_of(batch, value)}

    cases = {
        "bypass_clip": (TOKEN, {"loss_type": "ppo_clip", "rollout_is": None}),
        "bypass_clip_rejected": (SEQUENCE, {
            "loss_type": "ppo_clip", "rollout_is": None, "rollout_rs": "seq_mean_k1",
            "rollout_rs_threshold": "0.7_1.4"}),
        "bypass_reinforce": (TOKEN, {"loss_type": "reinforce", "rollout_is": None}),
        "bypass_reinforce_token": ("seq-mean-token-sum", {
            "loss_type": "reinforce", "rollout_is": "token", "rollout_is_threshold": 2.0}),
        "bypass_reinforce_sequence": ("seq-mean-token-sum", {
            "loss_type": "reinforce", "rollout_is": "sequence", "rollout_is_threshold": 2.0}),
    }
    for name, (agg, correction) in cases.items():
        frozen(name, of(agg, **correction), estimator="grpo", loss="bypass_mode", aggregation=agg,
               batches=NO_SINGLE, settings={**GIVEN, **correction, "old": "logp_sampler"})
    frozen("reinforce", reinforce, estimator="grpo", loss="compute_policy_loss_reinforce",
           aggregation="seq-mean-token-sum", batches=NO_SINGLE, settings={})


def corrections():
    """Weights and masks of old against sampler, under the vanilla loss."""
    config = actor(**GIVEN)

    def of(**correction):
        def run(batch):
            credit, mask = group_credit(batch), tensor(batch.mask)
            proto, kept, _ = corr.compute_rollout_correction_and_rejection_mask(
                on_mask(batch, tensor(batch.logp_old)),
                on_mask(batch, tensor(batch.logp_sampler)), mask, **correction,
            )
            weights = proto.batch["rollout_is_weights"] if proto else None

            def value(logp):
                return core.compute_policy_loss_vanilla(
                    tensor(batch.logp_old), logp, credit, kept, TOKEN, config, weights
                )[0]

            return {"kept": kept.numpy(), **gradient_of(batch, value)}

        return run

    plain = {
        "tis_sequence_normalised": {"rollout_is": "sequence", "rollout_is_threshold": 2.0,
                                    "rollout_is_batch_normalize": True},
        "icepop_sequence": {"rollout_is": "sequence", "rollout_is_threshold": "0.5_5.0"},
        "tis_and_rejection": {"rollout_is": "token", "rollout_is_threshold": 2.0,
                              "rollout_rs": "seq_mean_k3,token_k1",
                              "rollout_rs_threshold": "0.2,0.4_2.5"},
    }
    bounds = {"token_k1": "0.5_1.5", "token_k2": 0.2, "token_k3": 0.2, "seq_sum_k1": "0.5_3.0",
              "seq_sum_k2": 0.8, "seq_sum_k3": 0.8, "seq_mean_k1": "0.9_1.2",
              "seq_mean_k2": 0.1, "seq_mean_k3": 0.1, "seq_max_k2": 0.3, "seq_max_k3": 0.3}
    rejected = {
        f"reject_{name}": {"rollout_rs": name, "rollout_rs_threshold": bound}
        for name, bound in bounds.items()
    }
    for name, correction in {**plain, **rejected}.items():
        frozen(name, of(**correction), estimator="grpo", loss="vanilla", aggregation=TOKEN,
               batches=NO_SINGLE, settings={**GIVEN, **correction})


def penalties():
    """Straight-through estimators: the value of one, the gradient of k2. And k3 at its clamp."""

    def of(kind, stretch=1.0):
        def run(batch):
            mask, ref = tensor(batch.mask), tensor(batch.logp_ref)
            ref = tensor(batch.logp) + stretch * (ref - tensor(batch.logp))
            return gradient_of(
                batch, lambda logp: core.agg_loss(core.kl_penalty(logp, ref, kind), mask, TOKEN)
            )

        return run

    for name, kind in {"k1_plus": "k1+", "k3_plus": "k3+", "absolute_plus": "abs+"}.items():
        frozen(f"kl_{name}", of(kind), aggregation=TOKEN, settings={"kl_penalty": kind})
    frozen("kl_k3_clamped", of("k3", 2.0), aggregation=TOKEN, settings={
        "kl_penalty": "k3", "reference": "logp + 2 (logp_ref - logp)", "clamp": 10.0})


def in_reward():
    """KL in the reward, its coefficient steered from batch to batch, and GAE on what is left."""
    settings = {"kl_coef": 0.2, "target_kl": 0.1, "horizon": 100, "gamma": 0.95, "lam": 0.9}

    def of(kind):
        steered = core.get_kl_controller(SimpleNamespace(type="adaptive", **settings))

        def run(batch):
            mask = tensor(batch.mask)
            coefficient = steered.value
            data = DataProto.from_dict(tensors={
                "response_mask": mask, "token_level_scores": tensor(batch.reward),
                "old_log_probs": tensor(batch.logp_old), "ref_log_prob": tensor(batch.logp_ref)})
            data, metrics = apply_kl_penalty(data, steered, kind)
            rewards = data.batch["token_level_rewards"]
            credit, _ = core.compute_gae_advantage_return(
                rewards, tensor(batch.value_old), mask, settings["gamma"], settings["lam"])
            credit = on_mask(batch, credit)
            made = loss_of("vanilla", batch, credit, TOKEN, actor(**GIVEN))
            return {"reward": rewards.numpy(), "advantage": credit.numpy(), **made,
                    "kl": metrics["actor/reward_kl_penalty"], "coefficient": coefficient,
                    "next_coefficient": steered.value}

        return run

    for kind in ("k1", "k3"):
        frozen(f"in_reward_{kind}", of(kind), estimator="gae", loss="vanilla", aggregation=TOKEN,
               batches={"empty": False}, settings={**GIVEN, **settings, "kl_penalty": kind})


def critics():
    """The clipped value loss under two means."""

    def of(agg, clip):
        def run(batch):
            value = tensor(batch.value).requires_grad_()
            returns = core.compute_gae_advantage_return(
                tensor(batch.reward), tensor(batch.value_old), tensor(batch.mask), 1.0, 0.95)[1]
            loss, _ = core.compute_value_loss(
                value, returns, tensor(batch.value_old), tensor(batch.mask), clip, agg)
            loss.backward()
            return {"returns": returns.numpy(), "value_loss": loss.item(),
                    "value_gradient": value.grad.numpy()}

        return run

    for name, agg, clip in (("value_token_mean", TOKEN, 0.2), ("value_sequence", SEQUENCE, 0.5)):
        frozen(name, of(agg, clip), aggregation=agg, batches={"empty": False},
               settings={"cliprange_value": clip, "gamma": 1.0, "lam": 0.95})


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
            return {"advantage": credit.numpy(), "loss": loss.item(),
                    "gradient": logp.grad.numpy(), "entropy_gradient": entropy.grad.numpy()}

        return run

    settings = {"entropy_coeff": 0.01, "kl_loss_coef": 0.3}
    for name, agg, kind in (("actor_k3", SEQUENCE, "low_var_kl"), ("actor_k2", TOKEN, "k2")):
        made = {**settings, "kl_loss_type": kind}
        frozen(name, of(agg, **made), estimator="grpo", loss="workers.utils.losses.ppo_loss",
               aggregation=agg, batches=NO_SINGLE, settings={**GIVEN, **made})


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
                actor(**GIVEN), config, {"log_probs": unpadded(batch, logp)}, given)
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
    config = DistillationConfig(distillation_loss=DistillationLossConfig(
        loss_mode="forward_kl_topk", topk=count, log_prob_min_clamp=None,
        use_policy_gradient=False))

    def run(batch):
        student = tensor(batch.student).requires_grad_()
        best = torch.log_softmax(tensor(batch.teacher), -1).topk(count, dim=-1)

        def jagged(x):
            return torch.nested.nested_tensor(list(x), layout=torch.jagged)

        made = compute_forward_kl_topk(
            student.reshape(1, -1, student.shape[-1]), jagged(best.values), jagged(best.indices),
            config, "thd")
        matrix = made["distillation_losses"].clamp_min(0.0).reshape(batch.mask.shape)
        loss = core.agg_loss(matrix, tensor(batch.mask), TOKEN)
        loss.backward()
        return {"loss": loss.item(), "gradient": student.grad.numpy()}

    frozen("forward_kl_topk", run, batches={"logits": True}, aggregation=TOKEN,
           precision="float32", settings={"topk": count, "log_prob_min_clamp": None})


def main():
    for group in (estimators, gdpo, losses, micro_batches, covariances, bypass, corrections,
                  penalties, in_reward, critics, whole_loss, distillations, topk):
        group()


if __name__ == "__main__":
    main()
