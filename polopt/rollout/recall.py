"""The last response to every prompt of a finite pool, and how far the policy has moved from it.

Responses are kept without their prompts: the rows of a batch that shows a prompt again begin with
it anyway, so a remembered response is scored in a batch of the same shape.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from polopt.rollout.pool import Pool
from polopt.types import Array, Trajectories

TOKENS, LOGP, LENGTH = "last_tokens", "last_logp", "last_length"


def no_responses(prompts: int, room: int) -> Pool:
    """Memory of the last response to each prompt, `room` tokens long at the most; none yet."""
    return {
        TOKENS: np.zeros((prompts, room), np.int32),
        LOGP: np.full((prompts, room), np.nan, np.float32),  # NaN where the policy wrote nothing
        LENGTH: np.zeros(prompts, np.int32),
    }


def remember(pool: Pool, batch: Trajectories) -> Pool:
    """The pool after a batch: of several rows of a prompt the last one stays."""
    tokens, logp, length = (pool[name].copy() for name in (TOKENS, LOGP, LENGTH))
    said = np.where(batch.action_mask, batch.logp_sampler + batch.log_keep, np.nan)
    for n, prompt in enumerate(np.asarray(batch.prompt)):
        own = slice(int(batch.prompt_length[n]), int(batch.length[n]))
        k = own.stop - own.start
        tokens[prompt], logp[prompt], length[prompt] = 0, np.nan, k
        tokens[prompt, :k], logp[prompt, :k] = batch.tokens[n, own], said[n, own]
    return {**pool, TOKENS: tokens, LOGP: logp, LENGTH: length}


def recalled(pool: Pool, batch: Trajectories) -> tuple[Trajectories, np.ndarray]:
    """Every row's prompt with its last response, as far as there is one, to be scored now.

    Returns:
      Trajectories of the batch's shape, and f32[N,T]: what the policy said then, NaN off actions.
    """
    prompt, start = np.asarray(batch.prompt), np.asarray(batch.prompt_length)
    tokens, then = np.array(batch.tokens), np.full(batch.tokens.shape, np.nan, np.float32)
    for n, p in enumerate(prompt):
        k = int(pool[LENGTH][p])
        own = slice(int(start[n]), int(start[n]) + k)
        tokens[n, own], then[n, own] = pool[TOKENS][p, :k], pool[LOGP][p, :k]
    length = (start + pool[LENGTH][prompt]).astype(np.int32)
    mask = ~np.isnan(then)
    return dataclasses.replace(
        batch, tokens=tokens, length=length, action_mask=mask, columns={}
    ), then


def drift(then: np.ndarray, now: Array) -> np.ndarray:
    """f32[N]: mean |then − now| over the actions of each row `[N,T]`; 0 where there is none."""
    mask = ~np.isnan(then)
    total = np.where(mask, np.abs(then - np.asarray(now)), 0).sum(1)
    return (total / np.maximum(mask.sum(1), 1)).astype(np.float32)
