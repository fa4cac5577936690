"""A world small enough to train in milliseconds: 32 characters, one layer, six problems."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from polopt import chain
from polopt.algorithm import Algorithm
from polopt.models import DecoderConfig, LanguageModel
from polopt.numerics import token_info, uniform_by_identity
from polopt.reward import group_mean_baseline, outcome_return
from polopt.tasks import Example, Task
from polopt.train.config import TrainConfig
from polopt.train.loop import Run
from polopt.train.parallel import forms
from polopt.train.policy import Policy, adapted
from polopt.train.record import open_record
from polopt.train.setup import pool_of, resolve, scale
from polopt.train.sinks import Fanout
from polopt.train.stop import StopRequest
from polopt.trajectory import Sampling, Update, kl_penalty, token_ratio
from polopt.transform import piece
from polopt.types import Term

MODEL = LanguageModel(
    DecoderConfig(
        vocab_size=32,
        hidden_size=16,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        mlp_size=16,
        max_length=32,
    )
)
SIZE = 6


@dataclasses.dataclass(frozen=True)
class Letters:
    """A tokenizer of 32 characters: id 0 is padding, 2 opens a text; some letters end it."""

    letters: str = "_.^abcdefghijklmnopqrstuvwxyz012"
    vocab_size: int = 32
    eos_ids: tuple[int, ...] = (1, 6, 13, 20, 27)  # many, so that completions are ragged
    chat_template: str | None = None
    system: str | None = None

    def prompt(self, question):
        return [2, *(self.letters.index(c) for c in question)]

    def encode(self, text):
        return [self.letters.index(c) for c in text]

    def decode(self, ids):
        return "".join(self.letters[i] for i in ids if i > 2)


def params(seed=0):
    """Weights that are far from uniform, so that no gradient is near zero."""
    made = MODEL.init(jax.random.key(seed))
    return jax.tree.map(lambda leaf: leaf * 8 if leaf.ndim == 2 else leaf, made)


def policy():
    return Policy(model=MODEL, params=params(), tokenizer=Letters())


def example(index, place):
    """Problem `place` of the data set; prompts have one to four letters."""
    return Example(prompt="abcdefgh"[place % 5 : place % 5 + 1 + place % 4], answer="", index=index)


def reward(completion, example):
    """Pays for early letters, and a little for brevity."""
    early = sum(c < "n" for c in completion)
    return {"correct": float(early >= 2), "short": 0.1 * (4 - len(completion))}


def task(**changes):
    made = Task(
        name="toy",
        size=SIZE,
        reward=reward,
        train=lambda i: example(i % SIZE, i % SIZE),
        held_out=tuple(example(i, i + 20) for i in range(3)),
    )
    return dataclasses.replace(made, **changes)


# ---------------------------------------------------------------- pieces with memory


@piece("reward", reads="reward", clock="rollout", init=lambda prompts: jnp.zeros(prompts))
def prompt_tracker(credit, trajectories, *, memory):
    """Take a running mean of each prompt's reward off its reward."""
    total = credit.reward.sum(1)
    centred = credit.reward - 0.1 * memory[trajectories.prompt][:, None] * (credit.reward != 0)
    memory = memory.at[trajectories.prompt].set(0.5 * memory[trajectories.prompt] + 0.5 * total)
    return dataclasses.replace(credit, reward=centred), memory


@piece("reward", reads="reward")
def jitter(credit, trajectories, *, key):
    """Add a little to what each token earned, at random by identity."""
    noise = uniform_by_identity(key, trajectories.id, credit.reward.shape[1])
    return dataclasses.replace(credit, reward=credit.reward * (1 + 0.01 * noise))


@piece(
    "trajectory",
    reads="ratio",
    writes="policy",
    term="policy",
    clock="update",
    init=lambda prompts: {"width": jnp.float32(0.2), "steps": jnp.int32(0)},
    advance=lambda memory, info: {
        "width": memory["width"] * (1 + 0.1 * info["policy/clip_fraction"].value()) * 0.99,
        "steps": memory["steps"] + 1,
    },
)
def adaptive_clip(surrogate, context, *, memory):
    """A clip whose width is a memory on the update clock."""
    ratio, width = surrogate.ratio, memory["width"]
    plain = ratio * context.credit
    held = jnp.clip(ratio, 1 - width, 1 + width) * context.credit
    term = Term(objective=jnp.minimum(plain, held), mask=context.mask)
    info = {**surrogate.info, "policy/clip_fraction": token_info(held < plain, context.mask)}
    return dataclasses.replace(surrogate, terms={**surrogate.terms, "policy": term}, info=info)


def remembering():
    """Memory on both clocks, noise, a reference, two epochs of two optimiser steps."""
    return Algorithm(
        name="remembering",
        reward=chain(prompt_tracker(), jitter(), outcome_return(), group_mean_baseline()),
        trajectory=chain(token_ratio(), adaptive_clip(), kl_penalty()),
        sampling=Sampling(group_size=2),
        update=Update(epochs=2, minibatches=2),
    )


# ---------------------------------------------------------------- runs


def config(**changes):
    settings = {
        "steps": 4,
        "prompts": 4,
        "max_new_tokens": 4,
        "eval_every": 2,
        "checkpoint_every": 1,
        "learning_rate": 1e-2,
        "warmup": 2,
        "parallel": "jit",
        "schedule": "linear",
    }
    return TrainConfig(**{**settings, **changes})


def make_run(algorithm, settings, on=None, teacher=None):
    """A run whose compiled functions can be used for many folders: see `go`."""
    alg = scale(algorithm, settings)
    settings = resolve(settings, alg)
    parallel, sampling = forms(
        settings.parallel,
        settings.devices,
        settings.mesh,
        settings.sample_devices,
        settings.sample_mesh,
    )
    problems = pool_of(on or task(), alg, settings)
    start = adapted(policy(), settings)
    return Run(settings, alg, start, parallel, problems, None, None, teacher, sampling)


def go(run, folder, *sinks, stop=None):
    """Start or resume the run in a folder."""
    settings = dataclasses.replace(run.config, run=str(folder), resume=True)
    with open_record(settings) as record:
        run.record, run.sink = record, Fanout([record, *sinks])
        return run.go(StopRequest() if stop is None else stop)


class Each:
    """A sink that calls `function(step)` after each training step."""

    def __init__(self, function):
        self._function = function

    def step(self, step, metrics):
        self._function(step)

    def __getattr__(self, event):
        return lambda *args: None


def left_behind(folder):
    """What a run leaves: its lines without times, its samples, and its checkpoints' bytes."""
    lines = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
    lines = [{k: v for k, v in row.items() if not k.startswith("time/")} for row in lines]
    return lines, Path(folder, "rollouts", "samples.jsonl").read_text()


def assert_same_tree(a, b):
    """Equal bit for bit."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
    ):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y), err_msg=str(path))


_compiled: list[str] = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **_: _compiled.append(event) if "compile" in event else None
)


@contextlib.contextmanager
def compilations():
    """Yields a function that counts what jax has traced, lowered or compiled inside."""
    before = len(_compiled)
    yield lambda: len(_compiled) - before
