"""Laws 1, 3 and 5 where hypothesis draws masks, groups and lengths; shapes never change."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polopt.build import earned_at, turns
from polopt.testing import degenerate, masks, on_policy, partition, random_trajectories

from .table import FACTORIES
from .toys import regression

N, T = 14, 10  # the shape for which the conformance table has compiled
METHODS = {**{key: FACTORIES[key] for key in ("grpo", "dapo", "gspo", "ppo", "reinforce_pp")},
           "regression": regression}


@st.composite
def structures(draw):
    """A batch whose structure is drawn: lengths, holes, groups, scores. Row 0 may be padding too."""
    length = np.array(draw(st.lists(st.integers(0, T), min_size=N, max_size=N)), np.int32)
    prompt = np.array([draw(st.integers(0, n)) for n in length], np.int32)
    bits = draw(st.lists(st.integers(0, 2**T - 1), min_size=N, max_size=N))
    groups = draw(st.lists(st.integers(0, N - 1), min_size=N, max_size=N))
    scored = np.array(draw(st.lists(st.booleans(), min_size=N, max_size=N)))
    levels = draw(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=N, max_size=N))
    at = np.arange(T)
    mask = np.array([[bool(b >> t & 1) for t in at] for b in bits])
    mask &= (at >= prompt[:, None]) & (at < length[:, None])
    real = length > 0
    reward = np.zeros((N, T), np.float32)
    reward[np.arange(N), earned_at(mask, prompt)] = np.where(real, levels, 0)
    ids = np.where(real, groups, -1).astype(np.int32)
    drawn = random_trajectories(draw(st.integers(0, 99)))
    return dataclasses.replace(
        drawn, length=length, prompt_length=prompt, action_mask=mask, turn=turns(mask), group=ids,
        prompt=ids, episode=np.where(real, np.arange(N), -1).astype(np.int32),
        reward_parts={"outcome": reward, "process": 0 * reward}, scored=scored & real)


@pytest.mark.parametrize("key", METHODS)
@settings(max_examples=25)
@given(batch=structures(), seed=st.integers(0, 9))
def test_any_structure(key, batch, seed):
    method = METHODS[key]()
    partition(method, seed=seed, trajectories=columns_of(key, batch))
    masks(method, seed=seed, trajectories=columns_of(key, batch))
    degenerate(method, seed=seed, trajectories=columns_of(key, batch))
    if key != "regression":
        on_policy(method, seed=seed, trajectories=columns_of(key, batch))


NEEDED = {"grpo": ("logp_old", "logp_ref"), "ppo": ("logp_old", "logp_ref", "value"),
          "reinforce_pp": ("logp_old", "logp_ref")}


def columns_of(key, batch):
    """Only what the method needs, as the conformance table has it."""
    names = NEEDED.get(key, ("logp_old",))
    return dataclasses.replace(batch, columns={name: batch.columns[name] for name in names})
