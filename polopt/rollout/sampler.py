"""The sampler: completions of a batch of prompts, as one pure function.

Each prompt is read once; its keys and values are held once and shared by the rows of its group.
Rows decode together until the last of them has stopped.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from polopt.errors import PoloptError
from polopt.models import Cache, LanguageModel, MixedModel, Params, grow_cache
from polopt.rollout.draw import Decoding, Drawn, draw, entropy_of, row_keys, uniform_at
from polopt.types import Array, Stop, record


@record
class Generated:
    """Completions, padded on the right with token 0 and log-probabilities 0."""

    tokens: Array  # i32[N,C] the token that stopped a row is part of it
    length: Array  # i32[N] real tokens are [0, length)
    logp_sampler: Array  # f32[N,C] under the filtered distribution that was drawn from
    log_keep: Array  # f32[N,C] log of the mass that filters kept; the sum is unfiltered
    stop: Array  # i32[N] Stop.EOS, STOP_TOKEN or LENGTH; NONE where the prompt is padding
    entropy: Array | None = None  # f32[N,C] of what was drawn from, unfiltered; where asked for


class _State(NamedTuple):
    step: jax.Array  # i32[] tokens written so far
    token: Array  # i32[N] the last of them
    running: Array  # bool[N]
    cache: Cache
    out: Generated


@functools.partial(
    jax.jit,
    static_argnames=(
        "group_size",
        "max_new_tokens",
        "eos_ids",
        "stop_ids",
        "allowed_vocab",
        "grow_at",
        "entropy",
    ),
)
def generate(
    model: LanguageModel | MixedModel,
    params: Params,
    prompts: Array,
    prompt_lengths: Array,
    ids: Array,
    *,
    key: Array,
    group_size: int,
    max_new_tokens: int,
    decoding: Decoding,
    eos_ids: tuple[int, ...],
    stop_ids: tuple[int, ...] = (),
    allowed_vocab: int | None = None,
    grow_at: tuple[int, ...] = (),
    offset: Array | int = 0,
    entropy: bool = False,
) -> Generated:
    """Complete every prompt `group_size` times.

    A token depends on the key, its row's id, its position and what precedes it; not on the shape
    or order of the batch (up to the rounding of the logits, which decides a draw only when its
    uniform number falls on an edge of the distribution).

    Args:
      model: the decoder, or two of them that write together.
      params: its weights.
      prompts: i32[P,S], padded on the right.
      prompt_lengths: i32[P]; a prompt of length 0 is padding and gets empty completions.
      ids: i32[N], N = P * group_size, unique in the run; row n completes prompt n // group_size.
      key: of the run: a draw is `fold_in(fold_in(key, id), position)`, where positions count from
        `offset`.
      group_size: completions per prompt, at least 1.
      max_new_tokens: C, at least 1.
      decoding: temperature and filters.
      eos_ids: tokens that end a row with Stop.EOS; () if there is none.
      stop_ids: further tokens that end a row, with Stop.STOP_TOKEN.
      allowed_vocab: ids at or above it are never drawn (a padded vocabulary).
      grow_at: lengths, rising, at which the cache of own tokens grows on its way to C. Each saves
        reading room that is still empty and compiles the token step once more.
      offset: i32[N], the position of each row's first token: what it wrote in earlier calls whose
        tokens are part of the prompt now, so that no random number is used twice.
      entropy: record the entropy of every draw as well.

    Returns:
      Generated.

    Raises:
      PoloptError: shapes that disagree, or a row that could outgrow the model.
    """
    N, C = ids.shape[0], max_new_tokens
    _check_rows(prompts, prompt_lengths, ids, group_size)
    _check_lengths(model, prompts.shape[1], C, grow_at, allowed_vocab)
    keys = row_keys(key, ids)

    def choose(hidden: jax.Array, step: jax.Array) -> Drawn:
        logits = model.logits(params, hidden)
        uniform = uniform_at(keys, offset + step)
        drawn = draw(logits, uniform, decoding, allowed_vocab=allowed_vocab)
        return drawn._replace(entropy=entropy_of(logits, decoding)) if entropy else drawn

    def advance(state: _State) -> _State:
        cache, hidden = model.decode(params, prompt, state.cache, state.token, state.step - 1)
        drawn = choose(hidden, state.step)
        return _append(state._replace(cache=cache), drawn, eos_ids, stop_ids)

    prompt, hidden = model.prefill(params, prompts, prompt_lengths)
    hidden = jax.tree.map(lambda state: jnp.repeat(state, group_size, 0), hidden)
    first = choose(hidden, jnp.int32(0))
    running = jnp.repeat(prompt_lengths > 0, group_size)
    state = _start(model.empty_cache(N, 0), running, C, entropy)
    state = _append(state, first, eos_ids, stop_ids)
    for room in (*grow_at, C):
        state = state._replace(cache=grow_cache(state.cache, room))
        until = min(room + 1, C)  # the last token drawn is not read any more
        state = jax.lax.while_loop(
            lambda state, until=until: (state.step < until) & state.running.any(), advance, state
        )
    stop = jnp.where(state.running, jnp.int32(Stop.LENGTH), state.out.stop)
    return dataclasses.replace(state.out, stop=stop)


def _append(
    state: _State, drawn: Drawn, eos_ids: tuple[int, ...], stop_ids: tuple[int, ...]
) -> _State:
    """Write one drawn token per running row, and retire the rows that it stops."""
    out, running = state.out, state.running
    token = jnp.where(running, drawn.token, 0)

    def write(column: Array, value: Array) -> Array:
        value = jnp.where(running, value, 0).astype(column.dtype)[:, None]
        return jax.lax.dynamic_update_slice_in_dim(column, value, state.step, axis=1)

    reason = jnp.where(
        _is_one_of(token, eos_ids),
        Stop.EOS,
        jnp.where(_is_one_of(token, stop_ids), Stop.STOP_TOKEN, Stop.NONE),
    )
    reason = jnp.where(running, reason, out.stop).astype(jnp.int32)
    out = Generated(
        tokens=write(out.tokens, token),
        length=out.length + running,
        logp_sampler=write(out.logp_sampler, drawn.logp_sampler),
        log_keep=write(out.log_keep, drawn.log_keep),
        stop=reason,
        entropy=None if out.entropy is None else write(out.entropy, drawn.entropy),
    )
    running = running & (reason == Stop.NONE)
    return _State(state.step + 1, token, running, state.cache, out)


def _is_one_of(token: Array, ids: tuple[int, ...]) -> Array:
    return (token[:, None] == jnp.array(ids, jnp.int32)[None]).any(-1)


def _start(cache: Cache, running: Array, C: int, entropy: bool) -> _State:
    N = running.shape[0]
    out = Generated(
        tokens=jnp.zeros((N, C), jnp.int32),
        length=jnp.zeros(N, jnp.int32),
        logp_sampler=jnp.zeros((N, C)),
        log_keep=jnp.zeros((N, C)),
        stop=jnp.full(N, Stop.NONE, jnp.int32),
        entropy=jnp.zeros((N, C)) if entropy else None,
    )
    return _State(jnp.int32(0), jnp.zeros(N, jnp.int32), running, cache, out)


def _check_rows(prompts: Array, prompt_lengths: Array, ids: Array, group_size: int) -> None:
    if prompts.ndim != 2 or prompt_lengths.shape != prompts.shape[:1]:
        raise PoloptError(
            f"generate: prompts have shape {prompts.shape} and prompt_lengths "
            f"{prompt_lengths.shape}: give [P,S] and [P]"
        )
    P = prompts.shape[0]
    if group_size < 1 or ids.shape != (P * group_size,):
        raise PoloptError(
            f"generate: ids have shape {ids.shape}: give one per row, {P} prompts x "
            f"group_size {group_size}, which must be at least 1"
        )


def _check_lengths(
    model: LanguageModel | MixedModel,
    S: int,
    C: int,
    grow_at: tuple[int, ...],
    allowed_vocab: int | None,
) -> None:
    longest, V = model.config.max_length, model.config.vocab_size
    if not 1 <= C <= longest - S:
        raise PoloptError(
            f"generate: max_new_tokens is {C} after prompts of {S} positions: "
            f"give 1 or more, and at most {longest} together (the model's max_length)"
        )
    if list(grow_at) != sorted({room for room in grow_at if 1 <= room < C}):
        raise PoloptError(
            f"generate: grow_at is {grow_at}: "
            f"give rising lengths from 1, below max_new_tokens ({C})"
        )
    if allowed_vocab is not None and not 1 <= allowed_vocab <= V:
        raise PoloptError(
            f"generate: allowed_vocab is {allowed_vocab}: give 1 to {V} (the model's vocab_size)"
        )
