"""Prompts drawn by what is known of them, and their last responses: against counting by hand."""

import dataclasses

import numpy as np
import pytest

from polopt.errors import PoloptError
from polopt.rollout.pool import learn, new_pool, pick
from polopt.rollout.recall import drift, no_responses, recalled, remember
from polopt.testing import random_trajectories
from polopt.testing.draw import take_rows
from polopt.trajectory.sampling import (
    Companion,
    Keep,
    LogMeanExp,
    Mixture,
    Prioritise,
    Sampling,
    Update,
    uncertainty,
)


def pool_of(seen, right):
    return {"seen": np.array(seen, float), "right": np.array(right, float)}


def test_only_what_remembers_has_a_memory():
    assert new_pool(Sampling(), 5) == {}
    made = new_pool(Sampling(prioritise=Prioritise()), 5)
    assert {name: x.tolist() for name, x in made.items()} == {"seen": [0.0] * 5, "right": [0.0] * 5}
    cached = Companion(column="v", policy="reference", cache=True)
    assert np.isnan(new_pool(Sampling(companion=cached), 5)["value"]).all()


def test_the_uncertain_are_drawn_more_often_in_proportion_to_their_weights():
    """One of four: frequencies are the weights; rate (right + 1/2) / (seen + 1)."""
    pool = pool_of([9, 9, 9, 0], [9, 4.5, 0, 0])
    rate = np.array([0.95, 0.5, 0.05, 0.5])
    weight = np.sqrt(rate * (1 - rate)) + 0.05
    draws = [int(pick(Prioritise(), pool, 1, (0, i))[0]) for i in range(4000)]
    share = np.bincount(draws, minlength=4) / 4000
    np.testing.assert_allclose(share, weight / weight.sum(), atol=0.025)
    np.testing.assert_allclose(uncertainty(rate, pool["seen"]), weight)


def test_prompts_of_a_draw_differ_and_follow_the_sequential_law():
    """P(first two are {0, 1}) of weights 4, 2, 1, 1: one after the other, without replacement."""
    spec = Prioritise(by=lambda rate, seen: np.array([4.0, 2, 1, 1]))
    pairs = [frozenset(pick(spec, pool_of([0] * 4, [0] * 4), 2, (1, i))) for i in range(4000)]
    assert all(len(pair) == 2 for pair in pairs)
    expected = 4 / 8 * 2 / 4 + 2 / 8 * 4 / 6
    assert np.mean([pair == {0, 1} for pair in pairs]) == pytest.approx(expected, abs=0.025)


def test_a_draw_is_addressed_by_its_seed():
    pool = pool_of([0] * 50, [0] * 50)
    first = pick(Prioritise(), pool, 20, (3, 40))
    np.testing.assert_array_equal(first, pick(Prioritise(), pool, 20, (3, 40)))
    assert (first != pick(Prioritise(), pool, 20, (3, 41))).any()


@pytest.mark.parametrize(
    ("by", "message"),
    [
        (lambda rate, seen: rate[:2], r"weights have shape \(2,\) for 4 prompts"),
        (lambda rate, seen: rate * np.nan, "give one finite number of at least 0"),
        (lambda rate, seen: rate - 1, "give one finite number of at least 0"),
        (lambda rate, seen: seen, "2 of 4 prompts have a weight above 0, and a rollout draws 3"),
    ],
)
def test_weights_that_are_none_are_one_line(by, message):
    with pytest.raises(PoloptError, match=message) as error:
        pick(Prioritise(by=by), pool_of([1, 1, 0, 0], [0] * 4), 3, (0,))
    assert "\n" not in str(error.value)


def batch(prompt, reward, scored):
    made = take_rows(random_trajectories(0), np.arange(len(prompt)))
    part = np.zeros(made.tokens.shape, np.float32)
    part[:, -1] = reward
    return dataclasses.replace(
        made,
        prompt=np.array(prompt, np.int32),
        scored=np.array(scored),
        reward_parts={"correct": part},
    )


def test_what_is_known_fades_and_is_added_to():
    spec, pool = Prioritise(decay=0.5), pool_of([4, 4, 4], [4, 2, 0])
    shown = batch([0, 0, 2, 2], [1, 0, 1, 1], [True, True, True, False])
    after = learn(spec, pool, shown)
    assert after["seen"].tolist() == [4.0, 4.0, 3.0]  # 2 + 2, untouched, 2 + 1 scored
    assert after["right"].tolist() == [3.0, 2.0, 1.0]
    assert pool["seen"].tolist() == [4.0, 4.0, 4.0]


def test_a_response_is_remembered_under_its_prompt():
    made = random_trajectories(1, rows=9)
    prompt = np.array([2, 0, 2, 1, 0, 3, 0, 2, 1], np.int32)
    made = dataclasses.replace(made, prompt=prompt)
    pool = remember(no_responses(5, made.tokens.shape[1]), made)
    again, then = recalled(pool, dataclasses.replace(made, tokens=made.tokens + 0))
    last = {2: 7, 0: 6, 1: 8, 3: 5}  # of several rows the last one stays
    said = made.logp_sampler + made.log_keep
    for n, p in enumerate(prompt):
        row, start = last[p], made.prompt_length[n]
        k = made.length[row] - made.prompt_length[row]
        own = slice(made.prompt_length[row], made.length[row])
        room = slice(start, start + k)
        assert again.length[n] == start + k
        np.testing.assert_array_equal(again.tokens[n, :start], made.tokens[n, :start])
        np.testing.assert_array_equal(again.tokens[n, room], made.tokens[row, own])
        np.testing.assert_array_equal(again.action_mask[n, room], made.action_mask[row, own])
        mask = made.action_mask[row, own]
        np.testing.assert_array_equal(then[n, room][mask], said[row, own][mask])
        assert again.action_mask[n].sum() == mask.sum()
    assert pool["last_length"][4] == 0


def test_drift_is_a_mean_over_actions():
    then = np.array([[np.nan, -1, -2, np.nan], [np.nan] * 4], np.float32)
    now = np.array([[-9, -2, -2.5, -9], [-1, -1, -1, -1]], np.float32)
    np.testing.assert_allclose(drift(then, now), [0.75, 0])


# ---------------------------------------------------------------- specs


def test_specs_are_equal_by_value():
    def spec():
        return Sampling(
            companion=Companion(
                column="v", policy="reference", samples=8, reduce=LogMeanExp(0.5), cache=True
            ),
            prioritise=Prioritise(),
            mixture=Mixture(share=0.5),
        )

    assert spec() == spec()
    assert hash(spec()) == hash(spec())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Companion(column="v", policy="teacher"), "accepted are policy, reference"),
        (lambda: Companion(column="v", greedy=True, samples=2), "1 if greedy"),
        (lambda: Companion(column="v", samples=0), "give 1 or more"),
        (lambda: Companion(column="v", cache=True), "remembers what never changes"),
        (lambda: LogMeanExp(0.0), "beta is 0.0"),
        (lambda: Keep(by=len, fraction=0), "Keep.fraction is 0: give a number above 0"),
        (lambda: Mixture(share=1.5), "Mixture.share is 1.5"),
        (lambda: Mixture(policy="critic"), "accepted are teacher, reference"),
        (lambda: Prioritise(decay=-1), "Prioritise.decay is -1"),
        (lambda: Update(reference="old"), "accepted are frozen, previous, ema"),
        (lambda: Update(ema=2), "Update.ema is 2"),
    ],
)
def test_a_spec_out_of_range_is_one_line(make, message):
    with pytest.raises(PoloptError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_log_mean_exp_is_exact_where_exponentials_overflow():
    returns = np.array([[0.0, 1.0, 0.5], [900.0, 901.0, 900.5]])
    expected = 0.1 * np.log(np.mean(np.exp(returns[0] / 0.1)))
    np.testing.assert_allclose(LogMeanExp(0.1)(returns), [expected, 900 + expected])
