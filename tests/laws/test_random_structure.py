"""Laws 1, 3 and 5 where hypothesis draws masks, groups and lengths; shapes never change."""

import dataclasses

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from polopt.build import earned_at, turns
from polopt.testing import degenerate, masks, on_policy, partition, random_trajectories
from polopt.types import Trajectories

from .table import FACTORIES
from .toys import regression

N, T = 14, 10  # the shape for which the conformance table has compiled
METHODS = {
    **{key: FACTORIES[key] for key in ("grpo", "dapo", "gspo", "ppo", "reinforce_pp")},
    "regression": regression,
}


ROW = st.tuples(  # length, prompt (of length), mask bits, group, scored, outcome
    st.integers(0, T),
    st.integers(0, T),
    st.integers(0, 2**T - 1),
    st.integers(0, N - 1),
    st.booleans(),
    st.sampled_from([0.0, 0.5, 1.0]),
)


def built(rows: list[tuple], seed: int) -> Trajectories:
    """A batch of that structure; any row may be padding, and any row without an action."""
    length, prompt, bits, group, scored, outcome = map(np.array, zip(*rows, strict=True))
    prompt = np.minimum(prompt, length)
    at = np.arange(T)[None]
    mask = (bits[:, None] >> at & 1).astype(bool)
    mask &= (at >= prompt[:, None]) & (at < length[:, None])
    real = length > 0
    reward = np.zeros((N, T), np.float32)
    reward[np.arange(N), earned_at(mask, prompt)] = np.where(real, outcome, 0)
    ids = np.where(real, group, -1).astype(np.int32)
    return dataclasses.replace(
        random_trajectories(seed),
        length=length.astype(np.int32),
        action_mask=mask,
        prompt_length=prompt.astype(np.int32),
        turn=turns(mask),
        group=ids,
        prompt=ids,
        episode=np.where(real, np.arange(N), -1).astype(np.int32),
        scored=scored & real,
        reward_parts={"outcome": reward, "process": 0 * reward},
    )


@pytest.mark.parametrize("key", METHODS)
@settings(max_examples=20, phases=(Phase.explicit, Phase.generate))
@given(rows=st.lists(ROW, min_size=N, max_size=N), seed=st.integers(0, 99))
def test_any_structure(key, rows, seed):
    batch = columns_of(key, built(rows, seed))
    laws = [partition, masks, degenerate, *([] if key == "regression" else [on_policy])]
    for law in laws:
        law(METHODS[key](), seed=seed, trajectories=batch)


NEEDED = {
    "grpo": ("logp_old", "logp_ref"),
    "ppo": ("logp_old", "logp_ref", "value"),
    "reinforce_pp": ("logp_old", "logp_ref"),
}


def columns_of(key, batch):
    """Only what the method needs, as the conformance table has it."""
    names = NEEDED.get(key, ("logp_old",))
    return dataclasses.replace(batch, columns={name: batch.columns[name] for name in names})
