"""tunix's half: its sampler, advantages, loss and train step, as its GRPO learner calls them."""

import pathlib
from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from peer_tokenizer import make_tokenizer, text_of
from safetensors.numpy import save_file
from serving import Clock, Peak, serve
from tunix.generate.sampler import CacheConfig, Sampler
from tunix.generate.utils import pad_to_length
from tunix.models.llama3.model import ModelConfig
from tunix.models.llama3.params import create_model_from_safe_tensors
from tunix.rl import algo_core
from tunix.rl.common import TrainExample
from tunix.rl.grpo.grpo_learner import GRPOConfig
from tunix.rl.trainer import Trainer
from tunix.sft.peft_trainer import TrainingConfig
from workload import CLIP, EOS, LEARNING_RATE, PAD, Case, lengths_of, prompts_of, reward_of

# Of the last parts of a parameter's path: Hugging Face's name, and how it lies there.
NAMES = {
    "attn.q_proj.w": ("self_attn.q_proj", lambda w: w.reshape(w.shape[0], -1).T),
    "attn.k_proj.w": ("self_attn.k_proj", lambda w: w.reshape(w.shape[0], -1).T),
    "attn.v_proj.w": ("self_attn.v_proj", lambda w: w.reshape(w.shape[0], -1).T),
    "attn.o_proj.w": ("self_attn.o_proj", lambda w: w.reshape(-1, w.shape[-1]).T),
    "mlp.gate_proj.kernel": ("mlp.gate_proj", np.transpose),
    "mlp.up_proj.kernel": ("mlp.up_proj", np.transpose),
    "mlp.down_proj.kernel": ("mlp.down_proj", np.transpose),
    "input_layernorm.w": ("input_layernorm", lambda w: w),
    "post_attention_layernorm.w": ("post_attention_layernorm", lambda w: w),
}


class FixedLengths(Sampler):
    """Row n ends after its length, as the end itself is cut off, and not before.

    The pad token, which tunix masks, is not drawn.
    """

    lengths: np.ndarray

    def _sample(self, logits, eos, cache, sampler_state):
        written = sampler_state.decoding_step + 1 - sampler_state.num_input_tokens
        ending = (jnp.asarray(self.lengths) == written)[:, None, None]
        ids = jnp.arange(logits.shape[-1])
        logits = jnp.where((ids == EOS) | (ids == PAD), -jnp.inf, logits)
        logits = jnp.where(ending, jnp.where(ids == EOS, 0.0, -jnp.inf), logits)
        return super()._sample(logits, eos, cache, sampler_state)


def model_of(work: pathlib.Path, case: Case) -> nnx.Module:
    config = ModelConfig(
        num_layers=case.layers,
        vocab_size=case.vocab,
        embed_dim=case.hidden,
        hidden_dim=case.mlp,
        num_heads=case.heads,
        head_dim=case.head_dim,
        num_kv_heads=case.kv_heads,
        rope_theta=int(case.theta),
        norm_eps=1e-5,
        weight_tying=case.tied,
    )
    return create_model_from_safe_tensors(str(work / "model"), config, dtype=jnp.float32)


def named(gradient: nnx.State) -> dict[str, np.ndarray]:
    """Under Hugging Face's names."""
    made = {}
    for path, leaf in nnx.to_flat_state(gradient):
        parts = [str(part) for part in path]
        value = np.asarray(leaf[...])
        if parts[0] == "layers":
            name, lay = NAMES[".".join(parts[2:])]
            made[f"model.layers.{parts[1]}.{name}.weight"] = np.ascontiguousarray(lay(value))
        elif parts[0] == "embedder":
            made["model.embed_tokens.weight"] = value
        else:
            made["model.norm.weight"] = value
    return made


def make(work: pathlib.Path, asked: dict) -> dict:
    case = Case(**asked)
    model, lengths = model_of(work, case), lengths_of(case)
    sampler = FixedLengths(
        model,
        make_tokenizer(case.vocab),
        CacheConfig(
            cache_size=case.prompt + case.completion,
            num_layers=case.layers,
            num_kv_heads=case.kv_heads,
            head_dim=case.head_dim,
        ),
    )
    sampler.lengths = lengths
    config = GRPOConfig(num_generations=case.group, num_iterations=1, beta=0.0, epsilon=CLIP)
    config.temperature = 1.0

    def loss(model, train_example, algo_config):
        return algo_core.grpo_loss_fn(model, train_example, config, pad_id=PAD, eos_id=EOS)

    trainer = Trainer(
        model,
        optax.adamw(LEARNING_RATE),
        TrainingConfig(eval_every_n_steps=10**6),
        custom_checkpoint_metadata_fn=dict,
    )
    trainer.with_loss_fn(loss, has_aux=True)
    trainer.with_gen_model_input_fn(lambda x: {"train_example": x, "algo_config": None})
    train_step, _ = trainer.jit_train_and_eval_step()
    texts = [text_of(p) for p in prompts_of(case).repeat(case.group, axis=0)]
    steps = 0

    def example(prompt_ids, completions, credit) -> TrainExample:
        return TrainExample(
            prompt_ids=jnp.asarray(prompt_ids),
            prompt_mask=jnp.asarray(prompt_ids) != PAD,
            completion_ids=jnp.asarray(completions),
            completion_mask=jnp.asarray(completions) != PAD,
            advantages=jnp.asarray(credit),
            ref_per_token_logps=None,
            old_per_token_logps=None,
        )

    def gradient() -> dict:
        found = np.load(work / "batch.npz")
        ids = prompts_of(case).repeat(case.group, axis=0)
        given = example(ids, found["completions"], found["credit"])
        run = nnx.jit(nnx.value_and_grad(lambda m, e: loss(m, e, None), has_aux=True))
        (value, _), grads = run(model, given)
        save_file(named(grads), work / "gradient_tunix.safetensors")
        return {"loss": float(value)}

    def step() -> dict:
        nonlocal steps
        with Peak() as peak:
            clock = Clock()
            sampler.transformer_state = nnx.variables(model, nnx.Param)
            out = sampler(
                input_strings=texts,
                max_generation_steps=case.completion,
                max_prompt_length=case.prompt,
                temperature=1.0,
                top_p=1.0,
                seed=jax.random.key(steps),
                eos_tokens=[EOS],
            )
            clock.lap("generate")
            rewards = np.array([reward_of(np.asarray(t)) for t in out.tokens])
            credit = algo_core.compute_advantages(rewards, case.group).astype(np.float32)
            completions = np.array(
                [pad_to_length(np.asarray(t), case.completion, PAD, left=False) for t in out.tokens]
            )
            given = example(out.padded_prompt_tokens, completions, credit)
            clock.lap("score")
            jax.block_until_ready(train_step(given))
            jax.block_until_ready(nnx.state(model))
            clock.lap("update")
        steps += 1
        assert ((completions != PAD).sum(1) == lengths).all()
        return {
            "wall": clock.wall,
            "cpu": clock.cpu,
            "peak": peak.block,
            "process_peak": peak.process,
        }

    def versions() -> dict:
        return {"google-tunix": version("google-tunix"), "jax": jax.__version__}

    return {"gradient": gradient, "step": step, "versions": versions}


if __name__ == "__main__":
    serve(make)
