"""A training step as shapes: what a run of such a configuration would hold and compute.

Everything is made by the functions that make a run (`polopt.train.loop.Run`), traced and never
computed, so that a plan speaks of the very arrays that a run has.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from polopt.algorithm import Algorithm, init, needs, single_step
from polopt.compose import prepare
from polopt.errors import PoloptError
from polopt.models import LanguageModel
from polopt.models.kernels import choose
from polopt.models.layout import Layout, Room, round_up_steps
from polopt.models.lora import join
from polopt.models.tokenizer import Tokenizer
from polopt.plan.config import PlanConfig
from polopt.plan.shapes import read_shape
from polopt.plan.slices import read_slice
from polopt.rollout.lanes import Drawing
from polopt.rollout.rows import ANSWER, BUCKET, LABELS
from polopt.train.config import TrainConfig
from polopt.train.micro_batches import MicroBatches, in_layouts, room_of
from polopt.train.models import DRIFT, Roles, first_params, parts, roles, scored, together
from polopt.train.policy import Policy, adapted
from polopt.train.rows import round_up
from polopt.train.setup import decoding_of, make_optimizer, packs, resolve, scale
from polopt.train.update import Params, TrainState, init_state
from polopt.types import Prepared, Trajectories

Shape = jax.ShapeDtypeStruct


class Slots(NamedTuple):
    """How many prompts are read at once, and how many rows of each decode side by side."""

    prompts: int
    lanes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What a run would have before its first step; arrays are shapes.

    Attributes:
      config: resolved.
      alg: scaled to it.
      policy: the static handle.
      params: of the policy, adapters with their base.
      roles: who is read when.
      state: parameters that are trained, and their optimiser's state.
      given: parameters that are not: frozen bases, reference, teacher; models over one base have
        the same one.
      prompt, completion: tokens of a prompt and of what follows, as they are padded.
    """

    config: TrainConfig
    alg: Algorithm
    policy: LanguageModel
    params: Params
    roles: Roles
    optimizer: optax.GradientTransformation
    state: TrainState
    given: Params
    prompt: int
    completion: int

    @property
    def prompts(self) -> int:
        """Of a rollout."""
        assert self.config.prompts is not None
        return self.config.prompts

    @property
    def group_size(self) -> int:
        """Completions of each."""
        assert self.config.group_size is not None
        return self.config.group_size

    @property
    def rows(self) -> int:
        """N, of a rollout."""
        return self.prompts * self.group_size

    @property
    def optimiser_steps(self) -> int:
        """Of a rollout."""
        return self.alg.update.epochs * self.alg.update.minibatches

    def split(self, micro_batch: int | None, devices: int) -> tuple[int, int]:
        """(rows per device and pass, rows of an optimiser step), padded as in a run."""
        rows = -(-self.prompts // self.alg.update.minibatches) * self.group_size
        micro = MicroBatches(rows, parts=devices, most_rows=micro_batch).largest
        return micro, round_up(rows, micro * devices)

    def trajectories(self) -> Trajectories:
        """A scored rollout."""
        N, T = self.rows, self.prompt + self.completion
        row, token, number = (
            Shape((N,), jnp.int32),
            Shape((N, T), jnp.int32),
            Shape((N, T), jnp.float32),
        )
        return Trajectories(
            tokens=token,
            length=row,
            prompt_length=row,
            action_mask=Shape((N, T), jnp.bool_),
            turn=token,
            group=row,
            id=row,
            prompt=row,
            episode=row,
            reward_parts={"reward": number},
            scored=Shape((N,), jnp.bool_),
            stop=row,
            logp_sampler=number,
            log_keep=number,
            temperature=Shape((N,), jnp.float32),
            version=token,
            columns=_columns(self.alg, N, T),
        )

    def prepared(self) -> Prepared:
        """The same with credit and weights."""
        step_of = None if single_step(self.alg) else Shape((self.rows,), jnp.int32)

        def make(trajectories: Trajectories, memory: Any, step_of: Any) -> Prepared:
            key = jax.random.key(0)
            return prepare(self.alg, trajectories, state=memory, key=key, step_of=step_of)[0]

        return jax.eval_shape(make, self.trajectories(), self.state.memory, step_of)

    def room(self, micro_batch: int) -> Room:
        """Room for the tokens of so many rows that a device computes at once."""
        return room_of(micro_batch, self.group_size, self.prompt, self.completion)

    def layout(self, rows: int, micro_batch: int, models: tuple[str, ...]) -> Layout | None:
        """Where tokens of so many rows are computed, as `polopt.train.micro_batches` lays them out.

        Args:
          rows: of all devices.
          micro_batch: of them, those that a device computes at once.
          models: that compute them.
        """
        if not in_layouts(self.roles.chosen(models)):
            return None
        room = self.room(micro_batch)
        splits, bins = rows // micro_batch, room.prompts * room.bins

        def numbers(*shape: int) -> Any:
            return Shape((splits, *shape), jnp.int32)

        return Layout(
            prompt=numbers(room.prompts, room.prompt),
            prompt_length=numbers(room.prompts),
            tokens=numbers(bins, room.bin),
            place=numbers(bins, room.bin),
            segment=numbers(bins, room.bin),
            source=numbers(micro_batch, self.prompt + self.completion),
        )

    def slots(self, devices: int) -> Slots:
        """For all rows of a rollout or for as many as `lanes` are, as the sampler has them."""
        most, prompts, size = self.config.lanes, self.prompts, self.group_size
        if most is None or most >= prompts * size:
            return Slots(round_up(prompts, devices), size)
        return Slots(most, 1) if most <= prompts else Slots(prompts, most // prompts)

    def rounds(self, devices: int) -> int:
        """How often all lanes are filled to sample a rollout."""
        slots = self.slots(devices)
        return -(-self.rows // (slots.prompts * slots.lanes))

    def drawing(self) -> Drawing:
        """How tokens are drawn; any may end a row."""
        return Drawing(decoding=decoding_of(self.config), eos_ids=(0,))


def make_job(config: PlanConfig, method: Algorithm | Callable[..., Algorithm]) -> Job:
    """The shapes of a configuration's training step.

    Args:
      config: of the plan.
      method: that `config.algorithm` names.

    Raises:
      PoloptError: no such model, or a method or lengths that do not go with it.
    """
    asked = config.training()
    alg = scale(method, asked)
    resolved = resolve(asked, alg)
    policy, params = _policy(config)
    shape = read_shape(config.teacher or config.model)
    teacher = LanguageModel(shape, config.compute_dtype, attention=policy.attention)
    made = roles(alg, policy, teacher)
    prompt = round_up(config.prompt_length, BUCKET)
    completion = config.max_new_tokens
    handle = _without_tokenizer(policy, params)
    if packs(resolved, handle):
        prompt, completion = round_up_steps(prompt), round_up_steps(completion)
    longest = policy.config.max_length
    if prompt + completion > longest:
        raise PoloptError(
            f"prompts of {prompt} and completions of {completion} tokens, as they are padded, are "
            f"longer than the {longest} that {config.model} reads: give less (--prompt-length, "
            "--max-new-tokens)"
        )
    steps = resolved.steps * alg.update.epochs * alg.update.minibatches
    optimizer, _ = make_optimizer(resolved, steps)

    def started(params: Params) -> TrainState:
        first = first_params(made, params, resolved.seed)
        return init_state(first, optimizer, init(alg, prompts=resolved.prompts or 0))

    state = jax.eval_shape(started, params)
    given = _given(alg, made, policy, params, teacher)
    return Job(
        config=resolved,
        alg=alg,
        policy=policy,
        params=together(given, state.params)["policy"],
        roles=made,
        optimizer=optimizer,
        state=state,
        given=given,
        prompt=prompt,
        completion=completion,
    )


def _policy(config: PlanConfig) -> tuple[LanguageModel, Params]:
    """The policy's handle, with adapters where the configuration asks for them, and its shapes."""
    kind = choose(config.attention, read_slice(config.slice).platform)
    model = LanguageModel(read_shape(config.model), config.compute_dtype, attention=kind)
    params = jax.eval_shape(model.init, jax.random.key(0))
    handles: list[LanguageModel] = []

    def make(params: Params) -> Params:
        made = adapted(_without_tokenizer(model, params), config.training())
        handles.append(made.model)
        return made.params

    params = jax.eval_shape(make, params)
    return handles[-1], params


def _without_tokenizer(model: LanguageModel, params: Params) -> Policy:
    """What the functions of a run take; nothing here reads or writes text."""
    return Policy(model=model, params=params, tokenizer=cast(Tokenizer, None))


def _given(
    alg: Algorithm,
    made: Roles,
    policy: LanguageModel,
    params: Params,
    teacher: LanguageModel,
) -> Params:
    """As `Run._given` has it: what no optimiser step moves."""
    start, base = parts(policy, params)
    given: Params = {}
    if "teacher" in made.given:
        read = jax.eval_shape(teacher.init, jax.random.key(0))
        given["teacher"] = jax.eval_shape(teacher.read_only, read)
    if base is not None:
        base = jax.eval_shape(policy.read_only, base)
    if "reference" in made.given and base is not None:
        given["reference"] = join(start, base)
    elif "reference" in made.given:
        averaged = alg.update.reference == "ema"
        given["reference"] = start if averaged else jax.eval_shape(policy.read_only, start)
    over = [name for name in made.trained if name in ("policy", "prm")]
    return given if base is None else given | dict.fromkeys(over, base)


def _columns(alg: Algorithm, N: int, T: int) -> dict[str, Any]:
    """What the pieces need of a rollout besides what is always recorded."""
    spec = alg.sampling.companion
    per_row = {DRIFT: jnp.float32, ANSWER: jnp.int32}
    per_row |= {spec.column: jnp.float32} if spec else {}
    names = dict.fromkeys([*scored(alg), *per_row, *LABELS, "logp_teacher"])
    return {
        name: Shape((N,), per_row[name])
        if name in per_row
        else Shape((N, T), jnp.int32 if name in LABELS else jnp.float32)
        for name in names
        if name in needs(alg)
    }
