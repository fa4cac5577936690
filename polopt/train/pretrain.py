"""Supervised pretraining of a small base model from nothing: tokenizer, data, weights.

The model that ships with polopt was made here; its README has the command. It learns two habits
for one task (see `polopt.tasks.chain_sum`): to work a problem in steps, nearly always rightly, and
more often to answer at once, carelessly. Rows and mixture are two things here: most rows teach the
habit that is hard to learn, and weights on the first token, where the habits part, set how often
the model will choose each.
"""

from __future__ import annotations

import functools
import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

from polopt.errors import PoloptError
from polopt.models import DecoderConfig, LanguageModel, Params, base
from polopt.models.tokenizer import Tokenizer, train_tokenizer
from polopt.tasks import Example, chain_sum, families, load_task, reasoning_task
from polopt.train.config import PretrainConfig
from polopt.train.fields import assignments
from polopt.types import Array

VOCABULARY = 512
HEAD_SIZE = 32
WORKED_SHARE = 0.33  # how often the model is to begin a worked solution
WORKED_ROWS = 0.875  # of the rows, which teach it to get there
DIRECT_RIGHT = 0.12  # of the direct answers
DIRECT_ERROR = 3  # the others are off by 1 to 3, either way
HELD_OUT = 512  # problems that no row shows: evaluate on as many, or fewer

_STREAM = 1 << 31  # apart from the training streams of runs, whose seeds are small
_CLASSES = 4  # of row lengths; each is padded to its own longest row
_WARMUP, _DECAY = 100, 0.4  # steps of rising, share of falling learning rate
_WIDTH_INIT = 4.0  # from the decoder's deviation of 0.02 to about hidden_size ** -0.5
_LOG_EVERY = 50

# Their problems differ between Python processes, or take seconds each.
_NOT_IN_CORPUS = {
    *("composite", "isomorphic_strings", "list_functions", "polynomial_multiplication"),
    *("ransom_note", "knight_swap", "sokoban", "intermediate_integration", "zebra_puzzles"),
}
_CORPUS_PROBLEMS, _CORPUS_CHARACTERS, _CORPUS_SUMS = 24, 600, 2000


class Rows(NamedTuple):
    """Supervised rows: token ids, and the weight of predicting each from those before it."""

    tokens: np.ndarray  # i32[N,T], padded on the right
    weight: np.ndarray  # f32[N,T], 0 on prompts and padding


def pretrain(config: PretrainConfig, log: Callable[[str], None] = print) -> Path:
    """Train tokenizer and weights; write them as a model folder (`polopt.models.base`).

    Deterministic in `config` on one machine. `pretrain.jsonl` in the folder holds the loss curve.

    Args:
      config: folder, task, size, steps, batch, learning rate and seed.
      log: receives progress, one line at a time.

    Returns:
      The folder.

    Raises:
      PoloptError: a task without worked solutions, or a batch that does not divide by 4.
    """
    if config.batch % _CLASSES:
        raise PoloptError(f"batch is {config.batch}: give a multiple of {_CLASSES}")
    started = time.perf_counter()
    problems = problem_stream(config)
    # Of the same words for all seeds and settings: models that share a tokenizer can be distilled.
    tokenizer = train_tokenizer(_corpus(problem_stream(PretrainConfig())), VOCABULARY)
    model = LanguageModel(shape(config.layers, config.width))
    log(f"preparing {config.steps * config.batch} rows")
    batches = length_classes(supervised_rows(problems, tokenizer, config), config)
    params, curve = _fit(model, batches, config, log)
    folder = Path(config.out)
    base.save(folder, model, params, tokenizer)
    lines = [json.dumps({"step": step, "loss": loss}) + "\n" for step, loss in curve]
    (folder / "pretrain.jsonl").write_text("".join(lines), encoding="utf-8")
    log(f"wrote {folder} after {time.perf_counter() - started:.0f} s")
    return folder


def shape(layers: int = 4, width: int = 128) -> DecoderConfig:
    """Of a base model; the one that ships has 0.92 million weights."""
    return DecoderConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        num_layers=layers,
        num_heads=width // HEAD_SIZE,
        num_kv_heads=width // HEAD_SIZE,
        head_dim=HEAD_SIZE,
        mlp_size=3 * width,
        max_length=160,
    )


def problem_stream(config: PretrainConfig) -> Callable[[int], Example]:
    """Problems by index, endless, none of them held out."""
    if config.task != chain_sum.FAMILY:
        raise PoloptError(
            f"pretraining writes its own worked solutions, which it can do for "
            f"{chain_sum.FAMILY} only: not for {config.task}"
        )
    settings = assignments(config.task_args, "task_args")
    task = load_task(config.task, task_args=settings, held_out=HELD_OUT, seed=_STREAM + config.seed)
    return task.train


def _corpus(problems: Callable[[int], Example]) -> Iterator[str]:
    """What the tokenizer is trained on: questions of many kinds, and many of the task."""
    for family in families():
        if family not in _NOT_IN_CORPUS:
            task = reasoning_task(family, seed=_STREAM, held_out=0)
            for i in range(_CORPUS_PROBLEMS):
                yield task.train(i).prompt[:_CORPUS_CHARACTERS]
    for i in range(_CORPUS_SUMS):
        problem = problems(i)
        yield problem.prompt + "\n"
        yield chain_sum.worked(problem).partition("<")[0]


def supervised_rows(
    problems: Callable[[int], Example], tokenizer: Tokenizer, config: PretrainConfig
) -> Rows:
    """One row for each problem, `steps * batch` of them."""
    count = config.steps * config.batch
    rng = np.random.default_rng(config.seed)
    is_worked = rng.random(count) < WORKED_ROWS
    error = rng.integers(1, DIRECT_ERROR + 1, count) * rng.choice([-1, 1], count)
    error = np.where(rng.random(count) < DIRECT_RIGHT, 0, error)
    examples = [problems(i) for i in range(count)]
    texts = [
        chain_sum.worked(example) if works else chain_sum.direct(example, int(off))
        for example, works, off in zip(examples, is_worked, error, strict=True)
    ]
    eos = tokenizer.eos_ids[0]
    prompts = [tokenizer.prompt(example.prompt) for example in examples]
    whole = [
        prompt + completion + [eos]
        for prompt, completion in zip(prompts, tokenizer.encode_all(texts), strict=True)
    ]
    tokens = np.zeros((count, max(map(len, whole))), np.int32)
    weight = np.zeros(tokens.shape, np.float32)
    first = np.where(is_worked, WORKED_SHARE / WORKED_ROWS, (1 - WORKED_SHARE) / (1 - WORKED_ROWS))
    for n, (row, prompt) in enumerate(zip(whole, prompts, strict=True)):
        tokens[n, : len(row)] = row
        weight[n, len(prompt) : len(row)] = 1.0
        weight[n, len(prompt)] = first[n]
    return Rows(tokens, weight)


def length_classes(rows: Rows, config: PretrainConfig) -> Iterator[tuple[Rows, ...]]:
    """Batches of one block per class of length, so that little padding is computed."""
    rng = np.random.default_rng([config.seed, 1])
    length = (rows.weight > 0).shape[1] - np.argmax(rows.weight[:, ::-1] > 0, 1)
    classes = []
    for members in np.split(np.argsort(length, kind="stable"), _CLASSES):
        members, width = rng.permutation(members), int(length[members].max())
        classes.append(Rows(rows.tokens[members, :width], rows.weight[members, :width]))
    size = config.batch // _CLASSES
    for step in range(config.steps):
        part = slice(step * size, (step + 1) * size)
        yield tuple(Rows(block.tokens[part], block.weight[part]) for block in classes)


def _fit(
    model: LanguageModel,
    batches: Iterator[tuple[Rows, ...]],
    config: PretrainConfig,
    log: Callable[[str], None],
) -> tuple[Params, list[tuple[int, float]]]:
    """Train from random weights; return them and the loss, averaged between log lines."""
    params = _wider(model.init(jax.random.key(config.seed)))
    optimizer = _optimizer(config)
    state = optimizer.init(params)
    step = functools.partial(_step, model, optimizer)
    compiled = jax.jit(step, donate_argnums=(0, 1))
    curve: list[tuple[int, float]] = []
    recent: list[Array] = []
    started = time.perf_counter()
    for number, batch in zip(itertools.count(1), batches):
        params, state, loss = compiled(params, state, batch)
        recent.append(loss)
        if number % _LOG_EVERY == 0 or number == config.steps:
            curve.append((number, float(np.mean(jax.device_get(recent)))))
            recent = []
            seconds = (time.perf_counter() - started) / number
            log(f"step {number:5d}  loss {curve[-1][1]:.4f}  {seconds:.3f} s/step")
    return params, curve


def _step(
    model: LanguageModel, optimizer: Any, params: Params, state: Any, batch: Sequence[Rows]
) -> tuple[Params, Any, Array]:
    value, gradient = jax.value_and_grad(functools.partial(_loss, model))(params, batch)
    updates, state = optimizer.update(gradient, state, params)
    return cast(Params, optax.apply_updates(params, updates)), state, value


def _loss(model: LanguageModel, params: Params, batch: Sequence[Rows]) -> Array:
    """Weighted mean of −log p(token | those before it)."""
    total = weight = jnp.float32(0)
    for block in batch:
        logits = model.logits(params, model.hidden(params, block.tokens[:, :-1]))
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, block.tokens[:, 1:])
        total += (nll * block.weight[:, 1:]).sum()
        weight += block.weight[:, 1:].sum()
    return total / weight


def _optimizer(config: PretrainConfig) -> optax.GradientTransformation:
    """Muon: on these shapes it needs about half of AdamW's examples (experiments/base_model)."""
    warmup = min(_WARMUP, config.steps // 10)
    fall = max(int(_DECAY * config.steps), 1)
    peak = config.learning_rate
    schedule = optax.join_schedules(
        [
            optax.linear_schedule(0.0, peak, warmup),
            optax.constant_schedule(peak),
            optax.linear_schedule(peak, 0.01 * peak, fall),
        ],
        [warmup, config.steps - fall],
    )
    return optax.chain(
        optax.clip_by_global_norm(1.0), optax.contrib.muon(schedule, weight_decay=0.1)
    )


def _wider(params: Params) -> Params:
    """Scale the projections of a narrow model; embeddings and norms stay."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf * _WIDTH_INIT if "kernel" in jax.tree_util.keystr(path) else leaf,
        params,
    )
