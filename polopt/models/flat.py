"""A layout's tokens in one row: all of them go through a layer together."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array


class Flat(NamedTuple):
    """All tokens of a layout in one row, or in one row of each shard: prompts, then bins."""

    shards: int
    prompts: tuple[int, int]  # (P, S), of all shards
    bins: tuple[int, int]  # (B, C)

    def apart(self, x: Array) -> tuple[Array, Array]:
        """([P,S, ...], [B,C, ...]) of `x [shards,L, ...]`."""
        end = math.prod(self.prompts) // self.shards
        prompts = x[:, :end].reshape(*self.prompts, *x.shape[2:])
        return prompts, x[:, end:].reshape(*self.bins, *x.shape[2:])

    def joined(self, prompts: Array, bins: Array) -> Array:
        """[shards,L, ...] of `prompts [P,S, ...]` and `bins [B,C, ...]`."""
        parts = [x.reshape(self.shards, -1, *x.shape[2:]) for x in (prompts, bins)]
        return jnp.concatenate(parts, axis=1)
