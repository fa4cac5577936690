"""Baselines against literals, sums written out, and the identities that tie them together."""

import dataclasses

import numpy as np
import pytest

from polopt import Trajectories, add, piece
from polopt.reward import (
    accuracy_window,
    best_minus_second,
    constant_baseline,
    entropy_shaping,
    group_mean_baseline,
    length_penalty,
    length_weighted_baseline,
    log_mean_exp_baseline,
    max_at_k,
    optimal_value_baseline,
    outcome_return,
    shift_baseline,
)
from polopt.reward.returns import best_of_others
from polopt.testing import LawBroken, check_laws
from reward.handmade import COMPILED, method, near, run

RETURNS = [1.0, 0.0, 0.5, 2.0, 2.0, 7.0]
LENGTHS = [1, 3, 2, 4, 1, 2]


def batch(returns=RETURNS, lengths=LENGTHS, group=(0, 0, 0, 1, 1, 2), **changes):
    """A group of three, one of two equal rows, a group of one."""
    completions = [[9] * length for length in lengths]
    made = Trajectories.build([[1]] * 6, completions, list(returns), group=list(group), width=6)
    return dataclasses.replace(made, **changes)


def soft_gain(returns, temperature):
    """R_i less the log-mean-exp of the others, in float64 and one by one."""
    made = []
    for i, own in enumerate(returns):
        others = np.delete(np.asarray(returns, float), i) / temperature
        high = others.max()
        made.append(own - temperature * (high + np.log(np.mean(np.exp(others - high)))))
    return made


def test_length_weighted_baseline():
    """The group of three: (1·1 + 3·0 + 2·0.5) / 6 = 1/3."""
    credit = run(batch(), outcome_return(), length_weighted_baseline()).sequence
    near(credit, [2 / 3, -1 / 3, 1 / 6, 0, 0, 0])
    assert not np.any(credit[3:])  # exactly: equal returns, and a group of one


def test_length_weighted_baseline_of_equal_lengths_is_the_group_mean():
    """Identity 13 of the catalogue."""
    on = batch(lengths=[2] * 6)
    expected = run(on, outcome_return(), group_mean_baseline()).sequence
    near(run(on, outcome_return(), length_weighted_baseline()).sequence, expected)


def test_constants_and_columns():
    value = np.array([0.5, 0.5, 0.5, 1, 1, 3], np.float32)
    on = batch(columns={"optimal_value": value})
    near(run(on, outcome_return(), optimal_value_baseline()).sequence, RETURNS - value)
    near(run(on, outcome_return(), constant_baseline(0.5)).sequence, np.array(RETURNS) - 0.5)
    shifted = run(on, outcome_return(), group_mean_baseline(), shift_baseline(-0.1)).sequence
    near(shifted, np.array([0.5, -0.5, 0, 0, 0, 0]) + 0.1)


@pytest.mark.parametrize("temperature", [0.01, 1.0, 5.0])
def test_log_mean_exp_baseline(temperature):
    """At 0.01 the lone best row is 50 to 100 nats above the others, and the middle is the mean."""
    credit = run(batch(), outcome_return(), log_mean_exp_baseline(temperature)).sequence
    near(credit[:3], soft_gain(RETURNS[:3], temperature))
    assert not np.any(credit[3:])


def test_log_mean_exp_baseline_runs_from_the_best_to_the_mean_of_the_others():
    cold = run(batch(), outcome_return(), log_mean_exp_baseline(1e-4)).sequence
    np.testing.assert_allclose(cold[:3], [0.5, -1, -0.5], atol=1e-4)
    warm = run(batch(), outcome_return(), log_mean_exp_baseline(1e3)).sequence
    np.testing.assert_allclose(warm[:3], [0.75, -0.75, 0], atol=1e-3)


def test_the_others_are_other_episodes():
    """Rows 0 and 1 are one episode of return 1; 0 and 0.5 are the others."""
    rewards = {
        "score": np.array([0.5, 0.5, 0, 0.5, 2, 7], np.float32)[:, None] * np.eye(6)[[1] * 6]
    }
    group, episode = [0, 0, 0, 0, 1, 2], [0, 0, 1, 2, 3, 4]
    on = batch(
        reward_parts=rewards, group=np.array(group, np.int32), episode=np.array(episode, np.int32)
    )
    returns = run(on, outcome_return()).sequence
    near(best_of_others(np.asarray(returns), on)[:4], [0.5, 0.5, 1, 1])
    credit = run(on, outcome_return(), log_mean_exp_baseline(1.0)).sequence
    near(credit[:4], np.array(soft_gain([1, 0, 0.5], 1.0))[[0, 0, 1, 2]])
    near(run(on, outcome_return(), best_minus_second()).sequence[:4], [0.5, 0.5, 0, 0])
    near(run(on, outcome_return(), max_at_k(3)).sequence[:4], [0.5, 0.5, 0, 0])


def test_laws_of_the_pieces_that_no_method_ships_with():
    credits = add(log_mean_exp_baseline(1.0), best_minus_second(scaled=True), max_at_k(2))
    shaped = (length_penalty(), accuracy_window(-2.0, 0.9), credits, entropy_shaping())
    check_laws(method(outcome_return(), *shaped), laws=(*COMPILED, "invariances"))


@piece("reward", reads="sequence", invariant=("shift", "permutation"), min_group=2)
def half_of_the_best(credit, trajectories):
    """A baseline that moves by half of what the rewards move."""
    best = best_of_others(credit.sequence, trajectories)
    return dataclasses.replace(credit, sequence=credit.sequence - 0.5 * best)


def test_a_baseline_that_breaks_its_word():
    with pytest.raises(LawBroken, match="invariances"):
        check_laws(method(outcome_return(), half_of_the_best()), laws=["invariances"])
