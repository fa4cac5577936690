"""From a configuration to the parts of a run: algorithm, task, model, optimiser.

A bare factory has its paper's settings. The paper's batches are those of a cluster; a run scales
them down by one stated rule (`scale`), and whatever the configuration names wins over it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import optax

from polopt.algorithm import Algorithm, needs, pieces
from polopt.errors import PoloptError, UsageError, did_you_mean
from polopt.rollout.collect import Collector
from polopt.rollout.draw import Decoding
from polopt.rollout.lanes import Drawing, Generated
from polopt.rollout.rows import ANSWER
from polopt.rollout.sampler import generate
from polopt.rollout.server import corrected
from polopt.rollout.shares import Shares
from polopt.tasks import Example, IsolatedReward, Task, load_task
from polopt.train.config import SampleConfig, TrainConfig
from polopt.train.models import DRIFT, models_read
from polopt.train.policy import Policy, load_policy
from polopt.train.sft_config import SftConfig
from polopt.trajectory.sampling import Sampling
from polopt.transform import Transform

ROWS = 256  # completions per rollout, unless the configuration says otherwise
PACKED_FLOPS = 1e12  # of a rollout's update, from which packing is worth its compilations
LARGEST_GROUP, MOST_EPOCHS, MOST_MINIBATCHES = 8, 4, 4


def scale(method: Algorithm | Callable[..., Algorithm], config: TrainConfig) -> Algorithm:
    """The method at the size of this run.

    Groups have at most 8 members, a batch at most 4 epochs of at most 4 optimiser steps, and no
    more steps than groups. A factory that takes `max_length` gets the run's `max_new_tokens`, and
    its `cache` a fifth of that, as in DAPO's paper (4,096 of 20,480). Where a server samples, or a
    rollout is drawn ahead of the weights that learn from it, the method is corrected for it
    (`polopt.rollout.server.corrected`). `config.set` comes last.

    Raises:
      UsageError: `config.set` names nothing, or `config.minibatches` is more than the groups.
    """
    alg = method if isinstance(method, Algorithm) else _build(method, config.max_new_tokens)
    if (config.server and config.server_corrected) or config.sample_devices:
        alg = corrected(alg)
    update, sampling = alg.update, alg.sampling
    group = config.group_size or min(sampling.group_size, LARGEST_GROUP)
    for _, piece in pieces(alg):
        if group < piece.card.min_group:
            raise UsageError(
                f"group_size={group}: {piece.name} of {alg.name} compares completions "
                f"of one prompt and needs groups of at least {piece.card.min_group}"
            )
    prompts = _prompts(config, group)
    if (config.minibatches or 1) > prompts:
        raise UsageError(
            f"minibatches={config.minibatches} is more than the {prompts} groups of "
            "a rollout: groups lie whole within an optimiser step"
        )
    update = dataclasses.replace(
        update,
        epochs=config.epochs or min(update.epochs, MOST_EPOCHS),
        minibatches=config.minibatches or min(update.minibatches, MOST_MINIBATCHES, prompts),
    )
    sampling = dataclasses.replace(sampling, group_size=group)
    return with_hyper(alg.replace(update=update, sampling=sampling), config.hyper)


def _prompts(config: TrainConfig, group_size: int) -> int:
    return config.prompts or max(ROWS // group_size, 1)


def _build(factory: Callable[..., Algorithm], max_new_tokens: int) -> Algorithm:
    scaled = {"max_length": max_new_tokens, "cache": max_new_tokens / 5}
    taken = inspect.signature(factory).parameters
    made = factory(**{name: value for name, value in scaled.items() if name in taken})
    if not isinstance(made, Algorithm):
        raise PoloptError(
            f"{getattr(factory, '__name__', factory)} gives a "
            f"{type(made).__name__}, not a polopt.Algorithm"
        )
    return made


def with_hyper(alg: Algorithm, values: Mapping[str, float]) -> Algorithm:
    """The algorithm with numbers replaced by dotted name: `{"clip.low": 0.1}`.

    Raises:
      UsageError: no link or no number of that name, or a fraction where a whole number belongs.
    """
    links: dict[str, Transform] = {path.split("/")[-1]: t for path, t in pieces(alg)}
    links["aggregate"] = alg.aggregate
    for dotted, value in values.items():
        link, _, name = dotted.rpartition(".")
        if link not in links:
            raise UsageError(
                f"set: {alg.name} has no link {link!r}{did_you_mean(link, links)} "
                f"(it has {', '.join(links)})"
            )
        old = links[link]
        if name in old.hyper._fields:
            new = dataclasses.replace(old, hyper=old.hyper._replace(**{name: float(value)}))
        elif type(dict(old.options).get(name)) is int:
            if not float(value).is_integer():
                raise UsageError(f"set: {dotted} is a whole number, not {value}")
            options = tuple((k, int(value) if k == name else v) for k, v in old.options)
            new = dataclasses.replace(old, options=options)
        else:
            known = [*old.hyper._fields, *(k for k, v in old.options if type(v) is int)]
            raise UsageError(
                f"set: {link} has no number {name!r}{did_you_mean(name, known)} "
                f"(it has {', '.join(known) or 'none'})"
            )
        alg, links[link] = alg.replace(**{link: new}), new
    return alg


def resolve(config: TrainConfig, alg: Algorithm) -> TrainConfig:
    """The configuration with everything filled in that the method decides."""
    group = alg.sampling.group_size
    return dataclasses.replace(
        config,
        group_size=group,
        prompts=_prompts(config, group),
        epochs=alg.update.epochs,
        minibatches=alg.update.minibatches,
        run=str(config.folder),
    )


@contextlib.contextmanager
def task_of(config: TrainConfig | SampleConfig) -> Iterator[Task]:
    """The task that a configuration names; the process of a user's reward ends with it."""
    problems = config.eval_problems if isinstance(config, TrainConfig) else config.problems
    task = load_task(
        config.task or "chain_sum",
        task_args=config.task_args,
        data=config.data,
        reward=config.reward,
        held_out=problems,
        seed=config.seed,
    )
    with task.reward if isinstance(task.reward, IsolatedReward) else contextlib.nullcontext():
        yield task


def pool_of(task: Task, alg: Algorithm, config: TrainConfig) -> Task:
    """The task as the run shows it: with `config.problems` only so many, again and again.

    Raises:
      PoloptError: the method remembers prompts and there is no end of them, or they are fewer than
        a rollout draws; or it compares answers and the task has none.
    """
    spec, name = alg.sampling, alg.name or "the algorithm"
    if ANSWER in needs(alg) and task.answer is None:
        raise PoloptError(
            f"{name} compares answers, and {task.name} does not say what a text's answer is: "
            "give Task(answer=)"
        )
    if config.problems is not None or (spec.prioritise and task.size is not None):
        task = _first(task, config.problems or task.size or 0)
    users = [*remembering(alg), *(["prioritise"] if spec.prioritise else [])]
    users += [piece.name for _, piece in pieces(alg) if DRIFT in piece.needs]
    users += ["the cached companion"] if spec.companion and spec.companion.cache else []
    if users and task.size is None:
        raise PoloptError(
            f"{users[0]} of {name} remembers every prompt, and {task.name} has no end of them: "
            "give problems (--problems 256)"
        )
    if spec.companion and spec.companion.cache and alg.update.reference != "frozen":
        raise PoloptError(
            f"the cached companion of {name} remembers samples of a reference that moves: "
            'give Update(reference="frozen") or Companion(cache=False)'
        )
    drawn = math.ceil((config.prompts or 1) / (spec.keep.fraction if spec.keep else 1))
    if users and task.size is not None and task.size < drawn:
        raise PoloptError(
            f"a rollout of {name} draws {drawn} different prompts and {task.name} has "
            f"{task.size}: give fewer (--prompts) or a larger pool (--problems)"
        )
    return task


def _first(task: Task, problems: int) -> Task:
    """The first problems of a task, numbered by their place, without end."""
    if task.size is not None and problems > task.size:
        raise PoloptError(f"problems={problems}, but {task.name} has {task.size}")

    @functools.cache
    def at(place: int) -> Example:
        return dataclasses.replace(task.train(place), index=place)

    return dataclasses.replace(task, size=problems, train=lambda i: at(i % problems))


def remembering(alg: Algorithm) -> list[str]:
    """Names of the pieces whose memory has an entry for every prompt."""

    def sizes(piece: Transform, prompts: int) -> list[Any]:
        begin = piece.hooks.init
        assert begin is not None
        made = jax.eval_shape(lambda: begin(prompts, **piece.arguments()))
        return [leaf.shape for leaf in jax.tree.leaves(made)]

    kept = [piece for _, piece in pieces(alg) if piece.card.clock and piece.hooks.init]
    return [piece.name for piece in kept if sizes(piece, 1) != sizes(piece, 2)]


def teacher_of(
    alg: Algorithm, config: TrainConfig, policy: Policy, given: Policy | None
) -> Policy | None:
    """The teacher of a run: the one given, else the one that `config` names.

    Raises:
      PoloptError: none where the method reads one, one where it does not, or one with another
        tokenizer than the policy.
    """
    needed, name = "teacher" in models_read(alg), alg.name or "the algorithm"
    there = given is not None or config.teacher is not None
    if needed and not there:
        raise PoloptError(
            f"{name} learns from a teacher: give one (--teacher), base or the folder of a model or "
            "a run"
        )
    if there and not needed:
        raise PoloptError(f"teacher: {name} reads none, so leave it out")
    named = load_policy(config.teacher, config.compute_dtype) if config.teacher else None
    teacher = given or named
    if teacher and teacher.tokenizer != policy.tokenizer:
        raise PoloptError(
            f"teacher: its tokenizer is not that of the model ({config.teacher} and "
            f"{config.model}), and {name} compares them token by token"
        )
    return teacher


def collector_of(
    policy: Policy, task: Task, sampling: Sampling, max_new_tokens: int, temperature: float
) -> Collector:
    """What turns completions of a policy on a task into trajectories."""
    return Collector(
        task=task,
        tokenizer=policy.tokenizer,
        sampling=sampling,
        max_new_tokens=max_new_tokens,
        max_length=policy.model.config.max_length,
        temperature=temperature,
    )


def run_collector(
    config: TrainConfig,
    policy: Policy,
    task: Task,
    sampling: Sampling,
    modules: Mapping[str, Any],
    shares: Shares,
) -> Collector:
    """That of a training run, whose rows have room in every model that reads them."""
    made = collector_of(policy, task, sampling, config.max_new_tokens, config.temperature)
    room = min(module.config.max_length for module in modules.values())
    return dataclasses.replace(made, max_length=room, seed=config.seed, shares=shares)


def packs(config: TrainConfig, policy: Policy) -> bool:
    """Whether completions of a prompt are packed by length, at the price of several programs.

    Small models compute a padded batch in less time than another shape takes to compile.
    """
    if config.pack != "auto":
        return config.pack == "always"
    assert config.prompts is not None
    assert config.group_size is not None
    weights = sum(leaf.size for leaf in jax.tree.leaves(policy.params))
    tokens = config.prompts * config.group_size * config.max_new_tokens
    return 6 * weights * tokens >= PACKED_FLOPS


def drawing_of(policy: Policy, decoding: Decoding, collector: Collector) -> Drawing:
    """How a policy's tokens are drawn and what ends a row, as the collector's task asks for it."""
    return Drawing(
        decoding=decoding,
        eos_ids=policy.tokenizer.eos_ids,
        stop_ids=collector.stop_ids,
        allowed_vocab=policy.tokenizer.vocab_size,
        entropy=collector.entropy,
    )


def completer(model: Any, drawing: Drawing, max_new_tokens: int) -> Callable[..., Generated]:
    """A call of the sampler that draws so, ready to be compiled.

    `(params, key, prompts [P,S], lengths [P], ids [P,G], offset [P,G]) -> Generated`
    """

    def complete(
        params: Any, key: Any, prompts: Any, lengths: Any, ids: Any, offset: Any
    ) -> Generated:
        return generate(
            model,
            params,
            prompts,
            lengths,
            ids.reshape(-1),
            key=key,
            group_size=ids.shape[1],
            max_new_tokens=max_new_tokens,
            decoding=drawing.decoding,
            eos_ids=drawing.eos_ids,
            stop_ids=drawing.stop_ids,
            allowed_vocab=drawing.allowed_vocab,
            offset=offset.reshape(-1),
            entropy=drawing.entropy,
        )

    return complete


def decoding_of(config: TrainConfig | SampleConfig) -> Decoding:
    """How a configuration says that tokens are drawn; at temperature 0 the likeliest is taken."""
    return Decoding(
        temperature=config.temperature or 1.0,
        greedy=config.temperature == 0,
        top_k=config.top_k or 0,
        top_p=config.top_p or 1.0,
        min_p=config.min_p or 0.0,
    )


def make_optimizer(config: TrainConfig | SftConfig, total_steps: int) -> tuple[Any, optax.Schedule]:
    """AdamW behind a global-norm clip, and its learning-rate schedule.

    Args:
      total_steps: optimiser steps of the whole run.
    """
    peak, warmup = config.learning_rate, config.warmup
    after = max(total_steps - warmup, 1)
    tails = {
        "constant": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, 0.0, after),
        "cosine": optax.cosine_decay_schedule(peak, after),
    }
    # Starts one step up: a first step at learning rate 0 would be a rollout wasted.
    rise = optax.linear_schedule(peak / (warmup + 1), peak, warmup)
    schedule = optax.join_schedules([rise, tails[config.schedule]], [warmup])
    optimizer = optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm),
        optax.adamw(schedule, weight_decay=config.weight_decay),
    )
    return optimizer, schedule


def reset(old: Any, fresh: Any) -> Any:
    """The fresh optimiser state, with the learning rate where it stands in its schedule."""

    def is_schedule(x: Any) -> bool:
        return isinstance(x, optax.ScaleByScheduleState)

    return jax.tree.map(lambda a, b: a if is_schedule(a) else b, old, fresh, is_leaf=is_schedule)


def versions() -> dict[str, str]:
    """Versions of what decides a run's numbers."""
    import importlib.metadata as metadata

    names = ("polopt", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    found = {name: metadata.version(name) for name in names if _installed(name)}
    return {**found, "device": jax.devices()[0].device_kind}


def _installed(name: str) -> bool:
    import importlib.metadata as metadata

    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
