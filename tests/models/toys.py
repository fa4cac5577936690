"""Models without a decoder, and trajectories, for the tests of scoring."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from polopt.types import Trajectories


@dataclasses.dataclass(frozen=True)
class Toy:
    """States are running sums of embeddings, so that each depends on all tokens before it."""

    def hidden(self, params, tokens):
        return jnp.cumsum(params["embed"][tokens], axis=1)

    def unembedding(self, params):
        return params["out"]


@dataclasses.dataclass(frozen=True)
class Tape:
    """States are parameters: gradients and planted values are visible position by position."""

    def hidden(self, params, tokens):
        return params["states"]

    def unembedding(self, params):
        return params["out"]


@dataclasses.dataclass(frozen=True)
class Critic:
    """A value read from the embeddings of all tokens before the position."""

    def value(self, params, tokens):
        after = jnp.cumsum(params["embed"][tokens], axis=1)
        return jnp.pad(after[:, :-1], ((0, 0), (1, 0)))


def toy_params(seed, V, D, scale=0.5, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return {
        "embed": (scale * rng.normal(size=(V, D))).astype(dtype),
        "out": (scale * rng.normal(size=(V, D))).astype(dtype),
    }


def trajectories(tokens, mask, length=None, temperature=None):
    """Rows with that mask; whatever scoring does not read is zero."""
    N, T = tokens.shape
    rows, table = np.zeros(N, np.int32), np.zeros((N, T), np.float32)
    return Trajectories(
        tokens=tokens,
        length=np.full(N, T, np.int32) if length is None else length,
        prompt_length=rows,
        action_mask=mask,
        turn=table,
        group=rows,
        id=rows,
        prompt=rows,
        episode=rows,
        reward_parts={"outcome": table},
        scored=np.ones(N, bool),
        stop=rows,
        logp_sampler=table,
        log_keep=table,
        temperature=np.ones(N, np.float32) if temperature is None else temperature,
        version=table,
        columns={},
    )
