"""Freeze more of verl 0.9.1: the estimators, losses and corrections that `freeze_verl.py` omits.

In the same environment: `cd tests/public && verl/bin/python freeze_verl_more.py [CASE ...]`.
"""

import sys
from functools import partial

import numpy as np
import torch
import verl
from freeze_verl import NO_SINGLE, actor, advantage, loss_of, tensor
from freezing import freeze
from verl.trainer.config import AlgoConfig
from verl.trainer.ppo import core_algos as core
from verl.trainer.ppo import rollout_corr_helper as corr

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
    case(
        "grpo_vectorized",
        of("grpo_vectorized"),
        estimator="grpo_vectorized",
        settings=GIVEN,
        batches=NO_SINGLE,
        precision="float32",
    )
    raw = AlgoConfig(norm_adv_by_std_in_grpo=False)
    case(
        "passk_unscaled",
        of("grpo_passk", config=raw),
        estimator="grpo_passk",
        batches=NO_SINGLE,
        settings={**GIVEN, "norm_adv_by_std_in_grpo": False},
    )
    columns = {
        "old_log_probs": lambda b: tensor(b.logp_old),
        "sum_pi_squared": lambda b: tensor(b.sum_prob_sq),
    }
    weights = {"rollout_is_weights": lambda b: tensor(is_weights(b))}
    case(
        "otb_holes",
        of("optimal_token_baseline", **columns),
        estimator="optimal_token_baseline",
        settings=GIVEN,
        batches={**NO_SINGLE, "holes": True, "empty": False},
    )
    for name, extra in (("otb_tail", {"handle_zero_tail": False}), ("otb_weighted", weights)):
        told = {k: "token TIS at 2" if callable(v) else v for k, v in extra.items()}
        case(
            name,
            of("optimal_token_baseline", **columns, **extra),
            settings={**GIVEN, **told},
            estimator="optimal_token_baseline",
            batches={**NO_SINGLE, "holes": False, "empty": False},
        )


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
            tensor(batch.parts.sum(axis=0)),
            tensor(batch.mask),
            batch.group,
            config=config,
            non_tensor_batch={"first": total[0], "second": total[1]},
            batch={"prompts": torch.zeros(len(total[0]), 1), "attention_mask": attention.long()},
        )[0]
        credit = on_mask(batch, credit)
        loss = loss_of("vanilla", batch, credit, TOKEN, actor(**GIVEN))
        return {"advantage": credit.numpy(), **loss}

    frozen(
        "gdpo",
        run,
        estimator="gdpo",
        loss="vanilla",
        aggregation=TOKEN,
        batches=NO_SINGLE,
        precision="float32",
        settings={**GIVEN, "rewards": "parts", "weights": weights},
    )


def losses():
    """Policy losses on verl's group credit."""

    def of(name, agg, credit=group_credit, **settings):
        config = actor(**settings)

        def run(batch):
            made = credit(batch)
            return {"advantage": made.numpy(), **loss_of(name, batch, made, agg, config)}

        return run

    def case(name, loss, agg=TOKEN, narrow=NO_SINGLE, estimator="grpo", **settings):
        credit = (
            group_credit
            if estimator == "grpo"
            else (lambda b: on_mask(b, advantage(estimator, b)[0]))
        )
        frozen(
            name,
            of(loss, agg, credit, **settings),
            estimator=estimator,
            loss=loss,
            aggregation=agg,
            batches=narrow,
            settings=settings,
        )

    case("gpg", "gpg", estimator="gpg")  # a factor of rows over rows with a reward that is not 0
    case("grpo_one_sided", "vanilla", clip_ratio_c=1e9)  # no dual clip
    case("grpo_dual_clip", "vanilla", clip_ratio_low=0.1, clip_ratio_high=0.3, clip_ratio_c=1.5)
    case(
        "grpo_scaled",
        "vanilla",
        "seq-mean-token-sum-norm",
        global_batch_info={"loss_scale_factor": 16},
    )
    case("gspo_paper", "gspo", SEQUENCE, clip_ratio_low=3e-4, clip_ratio_high=4e-4)
    case("gspo_token_mean", "gspo", TOKEN, clip_ratio_low=0.3, clip_ratio_high=0.4)
    case("sapo_temperatures", "sapo", SEQUENCE, tau_pos=0.7, tau_neg=2.0)
    case("dppo_tv_cap", "dppo_tv", clip_ratio_low=0.1, clip_ratio_high=0.2, clip_ratio_c=20.0)
    case("dppo_kl_cap", "dppo_kl", clip_ratio_low=0.02, clip_ratio_high=0.1, clip_ratio_c=20.0)
    # verl's mean is over every row, an empty one too.
    case(
        "gmpo_empty_rows",
        "geo_mean",
        clip_ratio_low=0.4,
        clip_ratio_high=0.4,
        narrow={**NO_SINGLE, "empty": True},
    )


def micro_batches():
    """Two halves with the whole batch's counts, and with their own."""
    halves = (slice(0, 4), slice(4, 8))

    def of(agg, shared):
        def run(batch):
            credit, mask = group_credit(batch), tensor(batch.mask)
            counts = {
                "batch_num_tokens": int(mask.sum()),
                "dp_size": 1,
                "global_batch_size": int((mask.sum(1) > 0).sum()),
            }

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
            frozen(
                f"halves_{name}{suffix}",
                of(agg, shared),
                aggregation=agg,
                batches={**NO_SINGLE, "empty": False},
                settings={"loss": "-A r, no clip", "halves": told},
            )


def covariances():
    """clip_cov; `zeroed` is the flat index of the one token that chance took, or -1."""

    def of(**policy_loss):
        config = actor(**GIVEN, policy_loss=policy_loss)

        def run(batch):
            torch.manual_seed(batch.seed)
            credit = group_credit(batch).requires_grad_()
            made = loss_of("clip_cov", batch, credit, TOKEN, config)
            gone = np.flatnonzero((credit.grad.numpy() == 0) & batch.mask)
            zeroed = (
                {}
                if policy_loss["clip_cov_ratio"] == 1.0
                else {"zeroed": gone[0] if len(gone) else -1}
            )
            return {"advantage": credit.detach().numpy(), **made, **zeroed}

        return run

    band = {"clip_cov_lb": 0.3, "clip_cov_ub": 5.0}
    for name, ratio in (("clip_cov_all", 1.0), ("clip_cov_one", 0.0002)):
        settings = {"clip_cov_ratio": ratio, **band}
        frozen(
            name,
            of(**settings),
            estimator="grpo",
            loss="clip_cov",
            aggregation=TOKEN,
            batches=NO_SINGLE,
            settings={**GIVEN, **settings},
        )


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
    frozen(
        "kl_k3_clamped",
        of("k3", 2.0),
        aggregation=TOKEN,
        settings={"kl_penalty": "k3", "reference": "logp + 2 (logp_ref - logp)", "clamp": 10.0},
    )


def main():
    for group in (estimators, gdpo, losses, micro_batches, covariances, penalties):
        group()


if __name__ == "__main__":
    main()
