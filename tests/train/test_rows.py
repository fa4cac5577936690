"""Dealing the rows of a batch to optimiser steps, and gathering them."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polopt.algorithms import grpo
from polopt.compose import prepare
from polopt.errors import PoloptError
from polopt.testing.draw import random_trajectories
from polopt.train.rows import assign_steps, pad_rows, round_up, take, take_prepared

groups = st.lists(st.integers(-1, 5), min_size=1, max_size=24).map(lambda x: np.array(x, np.int32))


@given(groups, st.integers(1, 6), st.integers(0, 9))
def test_every_real_row_is_in_one_step_and_groups_lie_whole(group, minibatches, seed):
    ids = set(group[group >= 0].tolist())
    if len(ids) < minibatches:
        with pytest.raises(PoloptError, match=f"minibatches={minibatches}") as error:
            assign_steps(group, minibatches, (seed,))
        assert "\n" not in str(error.value)
        return
    step_of, steps = assign_steps(group, minibatches, (seed,))
    assert sorted(np.concatenate(steps).tolist()) == np.flatnonzero(group >= 0).tolist()
    members = [set(group[rows].tolist()) for rows in steps]
    assert sum(map(len, members)) == len(ids) == len(set().union(*members))
    assert max(map(len, members)) - min(map(len, members)) <= 1
    for step, rows in enumerate(steps):
        assert (step_of[rows] == step).all()
        assert (np.diff(rows) > 0).all()
    assert (step_of[group < 0] == 0).all()
    again = assign_steps(group, minibatches, (seed,))
    np.testing.assert_array_equal(again[0], step_of)


def test_another_seed_deals_another_way():
    group = np.arange(12, dtype=np.int32)
    dealt = {tuple(assign_steps(group, 3, (0, 7, epoch))[0]) for epoch in range(4)}
    assert len(dealt) == 4


def test_padding_of_row_numbers():
    assert [round_up(n, 4) for n in (1, 4, 5)] == [4, 4, 8]
    padded = pad_rows(np.array([3, 5]), 4, 9)
    assert padded.tolist() == [3, 5, 9, 9]
    assert padded.dtype == np.int32


def test_taken_rows_keep_their_groups_within_the_new_number_of_rows():
    batch = random_trajectories(0)
    n = len(batch.length)
    real = np.flatnonzero(batch.group >= 0)
    chosen = real[np.argsort(batch.group[real])][-4:]  # ids up to n - 1, in 4 rows
    assert batch.group[chosen].max() >= 6
    taken = take(batch, jnp.array([*chosen, n, n + 3]))
    for name in ("group", "episode"):
        new, old = np.asarray(getattr(taken, name)), getattr(batch, name)[chosen]
        assert (new[:4] >= 0).all()
        assert (new[:4] < 6).all()
        np.testing.assert_array_equal(new[:4, None] == new[:4], old[:, None] == old)
    np.testing.assert_array_equal(taken.tokens[:4], batch.tokens[chosen])
    np.testing.assert_array_equal(taken.turn[:4], batch.turn[chosen])


def test_a_row_beyond_the_batch_is_a_padding_row():
    batch = random_trajectories(1)
    taken = take(batch, jnp.array([len(batch.length)]))
    expected = {"length": 0, "group": -1, "episode": -1, "temperature": 1, "scored": False}
    assert {name: getattr(taken, name).item() for name in expected} == expected
    assert not taken.action_mask.any()
    assert (taken.turn == -1).all()
    prepared, _ = prepare(grpo(), batch)
    rows = take_prepared(prepared, jnp.array([len(batch.length)])).rows
    assert rows.group.item() == -1
    assert not rows.mask.any()
    assert not rows.credit.any()
    assert not any(weight.any() for weight in rows.weights.values())


def test_a_padding_row_inside_the_batch_stays_one():
    batch = random_trajectories(2)
    padding = np.flatnonzero(batch.group < 0)
    assert len(padding) == 1
    taken = take(batch, jnp.array([0, *padding]))
    assert taken.group[1].item() == -1
    assert taken.episode[1].item() == -1
