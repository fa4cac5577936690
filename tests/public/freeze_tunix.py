"""Freeze tunix 0.1.7. In an environment of its own, on CPU:

    uv venv tunix && uv pip install --python tunix google-tunix==0.1.7
    cd tests/public && tunix/bin/python freeze_tunix.py [CASE ...]

The losses ask `common` for the model's log-probabilities and scores: those two functions are
replaced by ones that answer with the batch's. `grpo` casts to float32 itself; the rest is float64.
"""

import dataclasses
import sys
from importlib.metadata import version
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from freezing import freeze
from tunix.rl import algo_core as core
from tunix.rl import common
from tunix.rl.grpo import dapo_learner
from tunix.rl.grpo.grpo_learner import GRPOConfig
from tunix.rl.ppo.ppo_learner import PPOConfig
from tunix.sft.dpo import dpo_trainer

jax.config.update("jax_enable_x64", True)


def frozen(case, run, **settings):
    """Freeze a case, unless the command line names others."""
    if not sys.argv[1:] or case in sys.argv[1:]:
        freeze("tunix", version("google-tunix"), case, run, **settings)


class Nothing(nnx.Module):
    """A model without parameters."""


def example(batch, credit, **columns):
    """A `TrainExample`: a namespace, since its pytree structure is not asked for."""
    ids = jnp.zeros(batch.mask.shape, int)
    return SimpleNamespace(
        prompt_ids=ids[:, :1],
        completion_ids=ids,
        completion_mask=jnp.asarray(batch.mask, int),
        advantages=jnp.asarray(credit),
        old_per_token_logps=jnp.asarray(batch.logp_old),
        **{"ref_per_token_logps": None, **columns},
    )


def value_and_gradient(name, config, batch, credit, **columns):
    given = example(batch, credit, **columns)

    def loss(logp):
        logits = jnp.zeros((*logp.shape, 2))
        common.compute_per_token_logps = lambda *_, **__: (logp, logits)
        fn = core.function_registry.get_policy_loss_fn(name)
        return fn(Nothing(), given, config, pad_id=0, eos_id=1)[0]

    value, gradient = jax.value_and_grad(loss)(jnp.asarray(batch.logp))
    return {"loss": value, "gradient": gradient}


def by_group(estimator, batch):
    """tunix takes groups of one size: each is given to it alone."""
    credit = np.zeros(len(batch.group))
    for rows in (batch.group == g for g in np.unique(batch.group)):
        credit[rows] = estimator(batch.outcome[rows], int(rows.sum()))
    return credit


def per_token(batch, credit):
    return np.where(batch.mask, np.asarray(credit)[:, None], 0.0)


def policy(case, narrow=None, estimator=core.compute_advantages, columns=None, **settings):
    fields = {f.name: f.default for f in dataclasses.fields(GRPOConfig)}
    config = SimpleNamespace(**{**fields, "temperature": 1.0, **settings})

    def run(batch):
        credit = by_group(estimator, batch)
        extra = columns(batch) if columns else {}
        made = value_and_gradient("grpo", config, batch, credit, **extra)
        return {"advantage": per_token(batch, credit), **made}

    frozen(
        case,
        run,
        batches=narrow or {},
        precision="float32",
        estimator=estimator.__name__,
        settings=settings,
    )


NO_SINGLE = {"singletons": False}  # tunix's deviation of one reward is NaN


def policies():
    policy("grpo", NO_SINGLE, beta=0.0)
    policy(
        "dapo",
        NO_SINGLE,
        beta=0.0,
        epsilon=0.2,
        epsilon_high=0.28,
        epsilon_c=3.0,
        loss_agg_mode="token-mean",
    )
    policy(
        "drgrpo",
        estimator=core.compute_drgrpo_advantages,
        beta=0.0,
        loss_agg_mode="sequence-mean-token-scale",
    )
    policy("rloo", estimator=core.compute_rloo_advantages, beta=0.0, loss_agg_mode="token-mean")
    policy("gspo_token", NO_SINGLE, beta=0.0, loss_algo="gspo-token", epsilon=0.3, epsilon_high=0.4)
    for mode in ("seq-mean-token-sum", "sequence-mean-token-sum-norm"):
        policy(f"grpo_{mode.replace('-', '_')}", NO_SINGLE, beta=0.0, loss_agg_mode=mode)
    for name, mode in (("k1", "kl"), ("k2", "mse_kl"), ("k3", "low_var_kl")):
        policy(
            f"grpo_{name}",
            NO_SINGLE,
            beta=0.3,
            kl_loss_mode=mode,
            columns=lambda b: {"ref_per_token_logps": jnp.asarray(b.logp_ref)},
        )
    # The agentic learner makes the weights inside a method that runs the sampler: given here.
    policy(
        "grpo_tis",
        NO_SINGLE,
        beta=0.0,
        loss_agg_mode="token-mean",
        columns=lambda b: {
            "sampler_is_weights": jnp.asarray(
                np.where(b.mask, np.minimum(np.exp(b.logp_old - b.logp_sampler), 2.0), 0.0)
            )
        },
    )


def ppo():
    settings = {
        "gamma": 0.9,
        "gae_lambda": 0.8,
        "epsilon": 0.2,
        "epsilon_c": 3.0,
        "clip_range_value": 0.5,
    }
    config = PPOConfig(**settings)

    def critic(batch, returns):
        given = example(batch, returns, old_values=jnp.asarray(batch.value_old), returns=returns)

        def loss(value):
            scores = jnp.pad(value, ((0, 0), (0, 1)))  # a score says the value of the next token
            common.compute_score = lambda *_, **__: scores
            return core.ppo_value_loss_fn(Nothing(), given, settings["clip_range_value"], 0, 1)[0]

        return jax.value_and_grad(loss)(jnp.asarray(batch.value))

    def run(batch):
        credit, returns = core.compute_gae_advantages(
            jnp.asarray(batch.reward),
            jnp.asarray(batch.value_old),
            jnp.asarray(batch.mask, float),
            settings["gamma"],
            settings["gae_lambda"],
        )
        value_loss, value_gradient = critic(batch, returns)
        return {
            "advantage": np.where(batch.mask, credit, 0.0),
            "value_loss": value_loss,
            "value_gradient": value_gradient,
            **value_and_gradient("ppo", config, batch, credit),
        }

    frozen("ppo", run, batches={"empty": False}, settings=settings)


def preferences():
    """Row i of the first four is chosen over row i + 4."""

    def of(algorithm, **settings):
        def run(batch):
            mask = jnp.asarray(batch.mask, float)
            ref = (jnp.asarray(batch.logp_ref) * mask).sum(1)
            given = SimpleNamespace(
                input_ids=None,
                positions=None,
                attention_mask=None,
                logits_to_keep=None,
                images=None,
                completion_mask=mask,
                ref_chosen_logps=ref[:4],
                ref_rejected_logps=ref[4:],
            )

            def loss(logp):
                total = (logp * mask).sum(1)
                dpo_trainer.compute_logps = lambda *_, **__: (total[:4], total[4:])
                return dpo_trainer.dpo_loss_fn(Nothing(), given, algorithm, **settings)[0]

            value, gradient = jax.value_and_grad(loss)(jnp.asarray(batch.logp))
            return {"loss": value, "gradient": gradient}

        return run

    pairs = "row i over row i + 4"
    smooth = {"beta": 0.1, "label_smoothing": 0.1}
    frozen("dpo", of("dpo", beta=0.1), batches={}, settings={"beta": 0.1, "pairs": pairs})
    frozen("dpo_smoothed", of("dpo", **smooth), batches={}, settings={**smooth, "pairs": pairs})
    # The odds of an empty row are infinite.
    frozen(
        "orpo",
        of("orpo", lambda_orpo=0.3),
        batches={"empty": False},
        settings={"lambda_orpo": 0.3, "pairs": pairs},
    )


def overlong():
    """The shaping of each row, repeated over its tokens; tunix measures text, here of letters."""
    settings = {
        "overlong_buffer_length": 3,
        "overlong_buffer_penalty": 1.0,
        "max_response_length": 7,
    }

    def run(batch):
        texts = ["a" * int(n) for n in batch.length]
        rewards = dapo_learner.reward_shaping(texts, texts, None, overlong_buffer=settings)
        return {"reward": per_token(batch, rewards)}

    frozen("overlong", run, batches={"holes": False, "empty": False}, settings=settings)


def main():
    policies()
    ppo()
    preferences()
    overlong()


if __name__ == "__main__":
    main()
