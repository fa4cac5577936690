"""What is remembered of a prompt, against the same recursion in NumPy."""

import dataclasses

import jax
import numpy as np
import pytest

from polopt import Trajectories
from polopt.reward import beta_tracker, smooth_standardise
from polopt.types import Credit
from reward.handmade import near

N = 6


def batch(prompt, scored=(True,) * N, **changes):
    scores = [0.0 if known else None for known in scored]
    made = Trajectories.build([[1]] * N, [[9]] * N, scores, group=[0, 0, 2, 2, 4, 4])
    return dataclasses.replace(made, prompt=np.array(prompt, np.int32), **changes)


@jax.jit
def step(tracker, on, returns, memory):
    start = Credit(reward=0.0, keep=on.action_mask, sequence=returns)
    credit, memory = tracker.fn(start, on, memory=memory, **tracker.arguments())
    return credit.sequence, memory


def fresh(tracker, prompts=4):
    return tracker.hooks.init(prompts, **tracker.arguments())


def counts(success, failure):
    return {"success": np.array(success, np.float32), "failure": np.array(failure, np.float32)}


def test_the_rate_is_that_from_before_the_batch():
    tracker, on = beta_tracker(), batch([0, 0, 1, 1, 3, 3])
    memory = counts([3, 1, 7, 0.5], [1, 1, 7, 0.5])
    credit, memory = step(tracker, on, np.array([1, 0, 1, 1, 0, 0], np.float32), memory)
    near(credit, [0.25, -0.75, 0.5, 0.5, -0.5, -0.5])
    near(memory["success"], [0.96 * 3 + 1, 0.96 + 2, 7, 0.96 / 2])
    near(memory["failure"], [0.96 * 1 + 1, 0.96, 7, 0.96 / 2 + 2])


def test_a_prompt_drawn_twice_fades_once_and_both_groups_are_added():
    tracker, on = beta_tracker(), batch([0, 0, 0, 0, 1, 1])
    returns = np.array([1, 0, 1, 1, 0, 0], np.float32)
    memory = step(tracker, on, returns, counts([3, 1], [1, 1]))[1]
    near(memory["success"], [0.96 * 3 + 3, 0.96])
    near(memory["failure"], [0.96 + 1, 0.96 + 2])


def test_the_past_fades_by_how_far_the_policy_moved():
    """A half-life of 0.06: moved by 0.006, by 0.01 and by so much that the floor holds."""
    moved = np.array([0.006, 0.006, 0.01, 0.01, 5, 5], np.float32)
    on = batch([0, 0, 1, 1, 2, 2], columns={"drift": moved})
    memory = step(
        beta_tracker(drift="drift"), on, np.zeros(N, np.float32), counts([1] * 3, [0] * 3)
    )[1]
    near(memory["success"], [2**-0.1, 2 ** (-1 / 6), 0.875])


def test_rows_without_a_past_touch_no_memory():
    """No index, an index beyond the data set, and no score; then a data set without end."""
    tracker, returns = beta_tracker(), np.array([1, 0, 1, 1, 0, np.nan], np.float32)
    on = batch([-1, -1, 4, 99, 1, 1], scored=[True] * 5 + [False])
    credit, memory = step(tracker, on, returns, fresh(tracker))
    near(credit, [0.5, -0.5, 0.5, 0.5, -0.5, 0])
    near(memory["success"], [0.5, 0.48, 0.5, 0.5])
    near(memory["failure"], [0.5, 1.48, 0.5, 0.5])
    endless, memory = step(tracker, on, returns, fresh(tracker, 0))
    near(endless, credit)
    assert memory["success"].shape == (0,)


@pytest.mark.parametrize("tracker", [beta_tracker(), smooth_standardise()], ids=str)
def test_the_order_of_a_prompts_rows_does_not_matter(tracker):
    """One prompt in two groups is one prompt."""
    on = batch([2, 2, 0, 0, 2, 2])
    returns = np.array([1, 0, 0, 1, 1, 1], np.float32)
    order = np.array([4, 2, 1, 5, 3, 0])
    moved = jax.tree.map(lambda x: x[order], on)
    credit, memory = step(tracker, on, returns, fresh(tracker))
    shuffled, same = step(tracker, moved, returns[order], fresh(tracker))
    near(shuffled, np.asarray(credit)[order])
    jax.tree.map(near, same, memory)


def test_an_episode_of_several_rows_is_one_sample():
    on = batch([0, 0, 1, 1, 1, 1], episode=np.array([0, 0, 1, 2, 3, 4], np.int32))
    tracker = beta_tracker()
    memory = step(tracker, on, np.ones(N, np.float32), fresh(tracker))[1]
    near(memory["success"][:2], [0.48 + 1, 0.48 + 4])


def test_smooth_standardise_over_three_visits():
    """Population statistics; the second visit is unanimous and learns from the first."""
    tracker = smooth_standardise(ddof=0)
    memory, seen = fresh(tracker), []
    visits = [[1, 0], [1, 1], [0, 4]]
    for n, visit in enumerate(visits, 1):
        on = batch([1, 1, 2, 2, 3, 3])
        returns = np.array(visit + [0] * 4, np.float32)
        credit, memory = step(tracker, on, returns, memory)
        seen += visit
        new = (visit - np.mean(visit)) / (np.std(visit) or 1)
        whole = (visit - np.mean(seen)) / np.std(seen)
        mixtures = np.stack([whole / n + (1 - 1 / n) * new, new / n + (1 - 1 / n) * whole])
        expected = mixtures[np.abs(mixtures).argmin(axis=0), [0, 1]]
        near(credit, [*expected, 0, 0, 0, 0])
        near([memory["mean"][1], memory["variance"][1]], [np.mean(seen), np.var(seen)])
    near(memory["count"], [0, 3, 3, 3])
