"""polopt's half of the comparison: the engine, packed layouts and the update, as in its loop."""

import functools
import pathlib

import jax
import numpy as np
import optax
from safetensors.numpy import load_file
from serving import Clock, Peak, serve
from workload import CLIP, LEARNING_RATE, Case, lengths_of, prompts_of, reward_of, write_batch

from polopt import Stop, Trajectories, chain, init, prepare
from polopt.aggregate import sequence_mean
from polopt.algorithm import Algorithm
from polopt.memory import give_back
from polopt.models import DecoderConfig, LanguageModel
from polopt.models.huggingface import save
from polopt.models.layout import plan
from polopt.reward import group_mean_baseline, group_std_scale, outcome_return
from polopt.rollout import Decoding
from polopt.rollout.engine import Engine
from polopt.rollout.lanes import Drawing
from polopt.train.parallel import Jit
from polopt.train.update import init_state, make_update
from polopt.trajectory import clip, token_ratio

GIVEN = chain(outcome_return())  # the batch's credit is its reward
GRPO = chain(outcome_return(), group_mean_baseline(), group_std_scale(ddof=1, eps=1e-4))


def algorithm(reward) -> Algorithm:
    return Algorithm(
        name="grpo",
        reward=reward,
        trajectory=chain(token_ratio(), clip(CLIP, CLIP)),
        aggregate=sequence_mean(),
    )


def model_of(case: Case) -> LanguageModel:
    return LanguageModel(
        DecoderConfig(
            vocab_size=case.vocab,
            hidden_size=case.hidden,
            num_layers=case.layers,
            num_heads=case.heads,
            num_kv_heads=case.kv_heads,
            head_dim=case.head_dim,
            mlp_size=case.mlp,
            max_length=2048,
            rope_theta=case.theta,
            tie_embeddings=case.tied,
        )
    )


def trajectories(case: Case, completions, rewards, logp_sampler) -> Trajectories:
    prompts = prompts_of(case).repeat(case.group, axis=0)
    return Trajectories.build(
        list(prompts),
        list(completions),
        list(rewards),
        group=case.group,
        logp_sampler=list(logp_sampler),
        stop=[Stop.EOS] * case.rows,
        width=case.prompt + case.completion,
    )


def step_of(case: Case, model: LanguageModel, alg: Algorithm, optimizer):
    """One optimiser step on a batch: credit, layout, gradient.

    A group at a time: what is kept for the backward pass then fits the cache, and costs less memory
    than computing it again would save.
    """
    update = Jit().step(make_update(alg, {"policy": model}, optimizer))
    credit = jax.jit(functools.partial(prepare, alg))
    splits = np.arange(case.rows, dtype=np.int32).reshape(case.prompts, -1)

    def step(state, batch: Trajectories):
        prepared, _ = credit(batch, state=state.memory)
        layout = plan(batch, splits)
        state, info = update(state, {}, batch, prepared, splits, layout)
        return jax.block_until_ready(state), info

    return step


def make(work: pathlib.Path, asked: dict) -> dict:
    case = Case(**asked)
    model = model_of(case)
    alg, optimizer = algorithm(GRPO), optax.adamw(LEARNING_RATE)
    lengths = lengths_of(case)
    engine = Engine(
        model=model,
        drawing=Drawing(decoding=Decoding(), eos_ids=()),
        max_new_tokens=case.completion,
    )
    one = step_of(case, model, alg, optimizer)
    start = {"policy": model.init(jax.random.key(0))}
    held = {"state": init_state(start, optimizer, init(alg)), "steps": 0}
    del start  # a copy: the state has its own
    ids = np.arange(case.rows, dtype=np.int32).reshape(case.prompts, -1)

    def export() -> dict:
        """The weights for everyone, and a batch."""
        save(work / "model", model, held["state"].params["policy"])
        write_batch(case, work / "batch.npz")
        return {"tensors": len(load_file(work / "model" / "model.safetensors"))}

    def gradient() -> dict:
        """Of the batch's loss: Adam's first moment is a multiple of the first gradient."""
        found = np.load(work / "batch.npz")
        completions = [t[:n] for t, n in zip(found["completions"], found["length"], strict=True)]
        batch = trajectories(
            case, completions, found["credit"], [np.zeros(n) for n in found["length"]]
        )
        given = algorithm(GIVEN)
        remember = optax.trace(decay=0.0)  # keeps the gradient itself
        first = init_state(held["state"].params, remember, init(given))
        state, info = step_of(case, model, given, remember)(first, batch)
        save(work / "gradient_polopt", model, state.opt_state.trace["policy"])
        return {"loss": float(info["policy/loss"].value())}

    def step() -> dict:
        with Peak() as peak:
            clock = Clock()
            key = jax.random.fold_in(jax.random.key(1), held["steps"])
            policy = held["state"].params["policy"]
            out = engine(
                policy,
                key,
                prompts_of(case),
                np.full(case.prompts, case.prompt, np.int32),
                ids,
                most=lengths.reshape(ids.shape),
            )
            give_back()
            clock.lap("generate")
            completions = [t[:n] for t, n in zip(out.tokens, out.length, strict=True)]
            logp = [t[:n] for t, n in zip(out.logp_sampler, out.length, strict=True)]
            batch = trajectories(case, completions, map(reward_of, completions), logp)
            clock.lap("score")
            held["state"], _ = one(held["state"], batch)
            give_back()
            clock.lap("update")
        held["steps"] += 1
        assert (out.length == lengths).all()
        return {
            "wall": clock.wall,
            "cpu": clock.cpu,
            "peak": peak.block,
            "process_peak": peak.process,
        }

    def versions() -> dict:
        return {"jax": jax.__version__, "optax": optax.__version__}

    return {"export": export, "gradient": gradient, "step": step, "versions": versions}


if __name__ == "__main__":
    serve(make)
