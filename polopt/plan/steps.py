"""The programs of a training step, lowered for devices that need not be here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from polopt.compiler import kept_barriers
from polopt.models.language_model import Params
from polopt.plan.job import Job, Shape
from polopt.rollout import lanes as device
from polopt.rollout.lanes import Lanes
from polopt.train.models import together
from polopt.train.parallel import Pmap, Sharded
from polopt.train.rows import round_up
from polopt.train.setup import completer
from polopt.train.update import make_scorer, make_update


def lower_update(job: Job, form: Sharded | Pmap, micro_batch: int | None) -> Any:
    """An optimiser step (`polopt.train.update.make_update`), as `jax.stages.Lowered`.

    Args:
      job: what is computed.
      form: where.
      micro_batch: rows of a device per pass; None for all.
    """
    micro, width = job.split(micro_batch, form.parts)
    update = make_update(
        job.alg,
        job.roles.chosen(job.roles.update),
        job.optimizer,
        axis=form.axis,
        shards=form.shards,
        remat=job.config.remat,
    )
    layout = job.layout(width, micro, job.roles.update)
    state, given = form.abstract((job.state, job.given))
    splits = Shape((width // micro, micro), jnp.int32)
    return form.step(update).lower(state, given, job.trajectories(), job.prepared(), splits, layout)


def lower_scoring(job: Job, form: Sharded | Pmap, micro_batch: int | None) -> Any:
    """The recorded columns of a rollout, for a method that needs some."""
    models, wanted = job.roles.scoring(), tuple(job.roles.columns.values())
    micro, _ = job.split(micro_batch, form.parts)
    scorer = make_scorer(job.roles.chosen(models), wanted, shards=form.shards)
    rows = round_up(job.rows, micro * form.parts)
    layout = job.layout(rows, micro, models)
    everyone = form.abstract(together(job.given, job.state.params))
    splits = Shape((rows // micro, micro), jnp.int32)
    return form.rows(scorer, dealt=2).lower(everyone, job.trajectories(), splits, layout)


def lower_sampling(job: Job, form: Pmap) -> Any:
    """A whole call of the sampler: one program, where devices have rows of their own."""
    complete = completer(job.policy, job.drawing(), job.completion)
    P = round_up(job.prompts, form.parts)
    prompts, lengths = Shape((P, job.prompt), jnp.int32), Shape((P,), jnp.int32)
    row = Shape((P, job.group_size), jnp.int32)
    sampler = form.rows(complete, dealt=4)
    return sampler.lower(job.params, _key(), prompts, lengths, row, row)


def lower_prefill(job: Job, form: Sharded) -> Any:
    """Reading the prompts of all slots, and room for what their lanes write."""
    slots = job.slots(form.parts)

    def read(params: Params, prompts: Any, lengths: Any, key: Any) -> Lanes:
        lanes = device.open_lanes(
            job.policy,
            params,
            prompts,
            lengths,
            key=key,
            lanes=slots.lanes,
            room=job.completion,
            ring=job.completion,
        )
        return device.spread(lanes)

    prompts = Shape((slots.prompts, job.prompt), jnp.int32)
    lengths = Shape((slots.prompts,), jnp.int32)
    return _lower(form, read, form.abstract(job.params), prompts, lengths, _key())


def lower_decode(job: Job, form: Sharded, lanes: Lanes) -> Any:
    """The loop that draws a token for every lane until all have stopped.

    Args:
      job: what is computed.
      form: where.
      lanes: shapes, with the shardings in which the prefill leaves them.
    """
    drawing = job.drawing()

    def decode(params: Params, lanes: Lanes, until: Any, idle: Any) -> Lanes:
        done = device.run(job.policy, params, lanes, drawing, until=until, idle=idle)
        return device.spread(done)

    number = Shape((), jnp.int32)
    params = form.abstract(job.params)
    return _lower(form, decode, params, lanes, number, number, donate_argnums=1)


def lanes_after(lowered: Any, compiled: Any) -> Lanes:
    """Shapes of what a compiled prefill gives, and where it leaves them."""

    def shape(out: Any, sharding: Any) -> Any:
        return Shape(out.shape, out.dtype, sharding=sharding)

    return jax.tree.map(shape, lowered.out_info, compiled.output_shardings)


def _key() -> Any:
    return jax.eval_shape(lambda: jax.random.key(0))


def _lower(form: Sharded, fn: Callable[..., Any], *args: Any, **how: Any) -> Any:
    """As the sampler's engine compiles; what does not say where it lies is whole everywhere."""
    whole = NamedSharding(form.mesh, PartitionSpec())
    options = kept_barriers(form.mesh.devices.flat[0].platform)

    def placed(leaf: Any) -> Any:
        return Shape(leaf.shape, leaf.dtype, sharding=leaf.sharding or whole)

    with form.ambient():
        jitted = jax.jit(fn, compiler_options=options, **how)
        return jitted.lower(*jax.tree.map(placed, args))
