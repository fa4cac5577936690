"""What the tests of pieces share: run some on a batch, and make a small method of them."""

import dataclasses

import jax
import numpy as np

from polopt import Algorithm, chain
from polopt.aggregate import token_mean
from polopt.trajectory import clip, token_ratio
from polopt.types import Credit

# One compilation each; the table of shipped methods checks the laws that run op by op.
COMPILED = ("partition", "on_policy", "masks", "degenerate", "composition")


def run(on, *links, **start):
    """The credit after all of the links, from the rewards of the batch."""
    return _run(on, links, start)


@jax.jit  # op by op, every test would compile dozens of them
def _run(on, links, start):
    reward = sum(on.reward_parts.values())
    # What `prepare` adds for every piece.
    behaviour = on.logp_sampler + on.log_keep
    on = dataclasses.replace(on, columns={"logp_behaviour": behaviour, **on.columns})
    credit = Credit(**{"reward": reward, "keep": on.action_mask, **start})
    for link in links:
        credit = link.fn(credit, on, **link.arguments())
    return credit


def near(got, expected):
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def method(*links):
    """A function that makes a PPO-like method of reward pieces."""

    def make():
        return Algorithm(
            name="handmade",
            reward=chain(*links),
            trajectory=chain(token_ratio(), clip(0.2, 0.2)),
            aggregate=token_mean(),
        )

    return make
