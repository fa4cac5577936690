"""Lanes: rows that decode side by side, each at its own place in its own completion.

The device half of sampling, pure functions of fixed shapes. `N` lanes belong to `P` slots, `N / P`
neighbours each; a slot holds one prompt, read once, and its lanes continue it. Lanes start and stop
independently: the cache of their own tokens is a ring that all of them write at the same index, and
what a lane sees of it is as much as it wrote itself since it started.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from polopt.models import LanguageModel, MixedModel, Params, grow_cache
from polopt.models.spread import ROWS, constrain, on_heads
from polopt.rollout.draw import Decoding, Drawn, draw, entropy_of, row_keys, uniform_at
from polopt.types import Array, Stop, record

Model = LanguageModel | MixedModel


@record
class Generated:
    """Completions, padded on the right with token 0 and log-probabilities 0."""

    tokens: Array  # i32[N,C] the token that stopped a row is part of it
    length: Array  # i32[N] real tokens are [0, length)
    logp_sampler: Array  # f32[N,C] under the filtered distribution that was drawn from
    log_keep: Array  # f32[N,C] log of the mass that filters kept; the sum is unfiltered
    stop: Array  # i32[N] Stop.EOS, STOP_TOKEN or LENGTH; NONE where the prompt is padding
    entropy: Array | None = None  # f32[N,C] of what was drawn from, unfiltered; where asked for

    @staticmethod
    def empty(N: int, C: int, entropy: bool) -> Generated:
        """Nothing written yet."""
        return Generated(
            tokens=jnp.zeros((N, C), jnp.int32),
            length=jnp.zeros(N, jnp.int32),
            logp_sampler=jnp.zeros((N, C)),
            log_keep=jnp.zeros((N, C)),
            stop=jnp.full(N, Stop.NONE, jnp.int32),
            entropy=jnp.zeros((N, C)) if entropy else None,
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawing:
    """How tokens are drawn and what ends a row."""

    decoding: Decoding
    eos_ids: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    stop_ids: tuple[int, ...] = dataclasses.field(default=(), metadata={"static": True})
    # Ids at or above it are never drawn.
    allowed_vocab: int | None = dataclasses.field(default=None, metadata={"static": True})
    entropy: bool = dataclasses.field(default=False, metadata={"static": True})


@record
class Lanes:
    """What the token step reads and writes."""

    prompt: Any  # keys and values of the slots' prompts, as the model's `prefill` makes them
    last: Any  # [P,D], the state after each prompt
    cache: Any  # a ring of own tokens, as the model's `empty_cache` makes it
    step: Array  # i32[] decoding steps taken, of all lanes together
    key: Array  # of the run
    id: Array  # i32[N] the row that a lane draws
    offset: Array  # i32[N] position of its first token
    most: Array  # i32[N] tokens after which it stops
    token: Array  # i32[N] the last token drawn
    running: Array  # bool[N]
    out: Generated  # [N,C]


def open_lanes(
    model: Model,
    params: Params,
    prompts: Array,
    lengths: Array,
    *,
    key: Array,
    lanes: int,
    room: int,
    ring: int,
    entropy: bool = False,
) -> Lanes:
    """Read the prompts of all slots; nothing runs yet.

    Args:
      model, params: who writes.
      prompts, lengths: i32[P,S], i32[P].
      key: of the run.
      lanes: of each slot.
      room: C, most tokens of a completion.
      ring: own tokens that the cache holds, at most `room`.
      entropy: record the entropy of every draw as well.
    """
    prompt, last = model.prefill(params, prompts, lengths)
    N = prompts.shape[0] * lanes
    return Lanes(
        prompt=prompt,
        last=last,
        cache=model.empty_cache(N, ring),
        step=jnp.int32(0),
        key=key,
        id=jnp.zeros(N, jnp.int32),
        offset=jnp.zeros(N, jnp.int32),
        most=jnp.full(N, room, jnp.int32),
        token=jnp.zeros(N, jnp.int32),
        running=jnp.zeros(N, bool),
        out=Generated.empty(N, room, entropy),
    )


def admit(
    model: Model, params: Params, lanes: Lanes, prompts: Array, lengths: Array, slots: Array
) -> Lanes:
    """Put other prompts into some slots `i32[A]` (P for none), whose lanes must be idle."""
    prompt, last = model.prefill(params, prompts, lengths)

    def put(kept: Array, new: Array) -> Array:
        return kept.at[slots].set(new, mode="drop")

    return dataclasses.replace(
        lanes,
        prompt=jax.tree.map(put, lanes.prompt, prompt),
        last=jax.tree.map(put, lanes.last, last),
    )


def start(
    model: Model,
    params: Params,
    lanes: Lanes,
    chosen: Array,
    ids: Array,
    offset: Array,
    most: Array,
    drawing: Drawing,
) -> Lanes:
    """Draw the first token of some lanes `bool[N]`, for rows `ids i32[N]`; the rest goes on.

    The new rows stop after `most i32[N]` tokens, 1 to C.
    """
    N = chosen.shape[0]
    hidden = jax.tree.map(lambda state: jnp.repeat(state, N // state.shape[0], axis=0), lanes.last)
    fresh = Generated.empty(N, lanes.out.tokens.shape[1], lanes.out.entropy is not None)

    def choose(new: Array, old: Array) -> Array:
        return jnp.where(chosen.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    lanes = dataclasses.replace(
        lanes,
        id=choose(ids, lanes.id),
        offset=choose(offset, lanes.offset),
        most=choose(most, lanes.most),
        out=jax.tree.map(choose, fresh, lanes.out),
    )
    drawn = _draw(model, params, lanes, hidden, drawing)
    return _append(lanes, drawn, chosen, drawing)


def run(
    model: Model,
    params: Params,
    lanes: Lanes,
    drawing: Drawing,
    *,
    until: Array | int,
    idle: Array | int,
) -> Lanes:
    """Decode to step `until`, or to the moment when `idle` lanes have nothing to do."""

    def going(lanes: Lanes) -> Array:
        running = jnp.sum(lanes.running)
        return (lanes.step < until) & (lanes.running.shape[0] - running < idle) & (running > 0)

    def advance(lanes: Lanes) -> Lanes:
        cache, hidden = model.decode(
            params, lanes.prompt, lanes.cache, lanes.token, lanes.step, _place(lanes)
        )
        lanes = dataclasses.replace(lanes, cache=cache, step=lanes.step + 1)
        drawn = _draw(model, params, lanes, hidden, drawing)
        return _append(lanes, drawn, lanes.running, drawing)

    return jax.lax.while_loop(going, advance, lanes)


def compact(lanes: Lanes, slots: Array, chosen: Array) -> Lanes:
    """Only some slots `i32[P']` (again, if several) and some lanes `i32[N']`, in that order."""
    of_slots, of_lanes = (
        lambda tree, at=at: jax.tree.map(lambda x: x[at], tree) for at in (slots, chosen)
    )
    return dataclasses.replace(
        lanes,
        prompt=of_slots(lanes.prompt),
        last=of_slots(lanes.last),
        cache=of_lanes(lanes.cache),
        id=lanes.id[chosen],
        offset=lanes.offset[chosen],
        most=lanes.most[chosen],
        token=lanes.token[chosen],
        running=lanes.running[chosen],
        out=of_lanes(lanes.out),
    )


def grow(lanes: Lanes, ring: int) -> Lanes:
    """A longer ring, as long as it has not gone round."""
    return dataclasses.replace(lanes, cache=grow_cache(lanes.cache, ring))


def spread(lanes: Lanes) -> Lanes:
    """The same over the devices of a mesh, if there is one: by rows, and the caches by heads."""
    return jax.tree.map(lambda x: on_heads(x) if x.ndim == 4 else constrain(x, ROWS), lanes)


def _place(lanes: Lanes) -> Array:
    """i32[N]: own tokens in the cache before the last one drawn."""
    return jnp.maximum(lanes.out.length - 1, 0)


def _draw(model: Model, params: Params, lanes: Lanes, hidden: Any, drawing: Drawing) -> Drawn:
    logits = constrain(model.logits(params, hidden), ROWS)  # the vocabulary whole: it is walked
    uniform = uniform_at(row_keys(lanes.key, lanes.id), lanes.offset + lanes.out.length)
    drawn = draw(logits, uniform, drawing.decoding, allowed_vocab=drawing.allowed_vocab)
    return (
        drawn._replace(entropy=entropy_of(logits, drawing.decoding)) if drawing.entropy else drawn
    )


def _append(lanes: Lanes, drawn: Drawn, writing: Array, drawing: Drawing) -> Lanes:
    """Write one drawn token per writing lane, and retire those that it stops."""
    out = lanes.out
    N, C = out.tokens.shape
    at = jnp.where(writing, out.length, C)  # C: dropped

    def write(column: Array, value: Array) -> Array:
        return column.at[jnp.arange(N), at].set(value.astype(column.dtype), mode="drop")

    length = out.length + writing
    reason = jnp.where(length == lanes.most, jnp.int32(Stop.LENGTH), jnp.int32(Stop.NONE))
    reason = jnp.where(_is_one_of(drawn.token, drawing.stop_ids), Stop.STOP_TOKEN, reason)
    reason = jnp.where(_is_one_of(drawn.token, drawing.eos_ids), Stop.EOS, reason)
    out = Generated(
        tokens=write(out.tokens, drawn.token),
        length=length,
        logp_sampler=write(out.logp_sampler, drawn.logp_sampler),
        log_keep=write(out.log_keep, drawn.log_keep),
        stop=jnp.where(writing, reason, out.stop).astype(jnp.int32),
        entropy=None if out.entropy is None else write(out.entropy, drawn.entropy),
    )
    return dataclasses.replace(
        lanes,
        token=jnp.where(writing, drawn.token, lanes.token),
        running=jnp.where(writing, reason == Stop.NONE, lanes.running),
        out=out,
    )


def _is_one_of(token: Array, ids: tuple[int, ...]) -> Array:
    return (token[:, None] == jnp.array(ids, jnp.int32)[None]).any(-1)
