"""The sampler: completions of a batch of prompts, as one pure function.

Each prompt is read once; its keys and values are held once and shared by the rows of its group.
Rows decode together until the last of them has stopped. `polopt.rollout.engine` samples more rows
than lanes.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from polopt.errors import PoloptError
from polopt.models import LanguageModel, MixedModel, Params
from polopt.rollout.draw import Decoding
from polopt.rollout.lanes import Drawing, Generated, grow, open_lanes, run, start
from polopt.types import Array


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
    most: Array | None = None,
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
      most: i32[N], tokens after which a row stops, 1 to C; C if not given.
      entropy: record the entropy of every draw as well.

    Returns:
      Generated.

    Raises:
      PoloptError: shapes that disagree, or a row that could outgrow the model.
    """
    N, C = ids.shape[0], max_new_tokens
    _check_rows(prompts, prompt_lengths, ids, group_size)
    _check_lengths(model, prompts.shape[1], C, grow_at, allowed_vocab)
    drawing = Drawing(
        decoding=decoding,
        eos_ids=eos_ids,
        stop_ids=stop_ids,
        allowed_vocab=allowed_vocab,
        entropy=entropy,
    )
    rooms = (*grow_at, C)
    lanes = open_lanes(
        model,
        params,
        prompts,
        prompt_lengths,
        key=key,
        lanes=group_size,
        room=C,
        ring=rooms[0],
        entropy=entropy,
    )
    real = jnp.repeat(prompt_lengths > 0, group_size)
    offset, most = (jnp.broadcast_to(x, (N,)) for x in (offset, C if most is None else most))
    lanes = start(model, params, lanes, real, ids, offset, most, drawing)
    for room in rooms:
        lanes = run(model, params, grow(lanes, room), drawing, until=room, idle=N)
    return lanes.out


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
